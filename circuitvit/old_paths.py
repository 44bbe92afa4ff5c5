"""Modules at their paths of version 0.1.0; each warns, and the next version drops them.

Pickles and scripts of that version name them. Only modules with public names are here.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from warnings import warn

PATHS = {
    "ablation": "intervene.ablated_run",
    "card": "export.card",
    "circuit": "graph.circuit",
    "circuit_vit": "models.circuit_vit",
    "controls": "graph.controls",
    "discover.circuits_by_class": "discover.class_circuits",
    "discover.state": "discover.acdc.engine.circuit_state",
    "edge_graph": "graph.edge_graph",
    "history": "models.history",
    "hooked": "models.hooked",
    "images.animals": "images.classes.imagenet",
    "images.paired_images": "images.pairs.paired_images",
    "images.tensors": "images.tensor_checks",
    "measure.ablations": "measure.circuits.across_ablations",
    "measure.accuracy": "measure.models.accuracy",
    "measure.advice": "measure.models.advice",
    "measure.classification": "measure.models.accuracy",
    "measure.completeness": "measure.circuits.completeness",
    "measure.cost": "measure.models.cost",
    "measure.cost_table": "measure.models.cost",
    "measure.curve": "measure.circuits.faithfulness",
    "measure.evaluation": "measure.models.evaluation",
    "measure.faithfulness": "measure.circuits.faithfulness",
    "measure.faithfulness_curve": "measure.circuits.faithfulness",
    "measure.latency": "measure.models.latency",
    "measure.limits": "measure.models.advice",
    "measure.minimality": "measure.circuits.minimality",
    "measure.outcome": "measure.circuits.losses",
    "measure.report": "measure.models.report",
    "measure.savings": "measure.models.savings",
    "metrics": "intervene.metrics",
    "onnx_model": "export.onnx_model",
    "overlap": "graph.overlap",
    "prediction": "models.prediction",
    "pretrained.examining": "pretrained.loading",
    "pretrained.into_huggingface": "export.into_transformers",
    "pretrained.into_timm": "export.into_timm",
    "provenance": "graph.circuit",
    "quantization": "export.onnx_model",
    "surgery": "intervene.surgery",
    "train.new_head": "train.adapter",
    "vit": "models.vit",
}


class _Room(ModuleType):
    """A package in which a module never replaces a function of its name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)


class _Finder:
    """Finds a module of an old path: the module at its new one, under both names."""

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        known = package == "circuitvit" and name in PATHS
        return ModuleSpec(fullname, self) if known else None  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Python's default: a new module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill it with the names of the module at the new path."""
        new = "circuitvit." + PATHS[module.__name__.removeprefix("circuitvit.")]
        warn(
            f"{module.__name__} is now {new}; the old path goes with the next version. Public "
            "names are best taken from circuitvit itself.",
            DeprecationWarning,
            stacklevel=2,
        )
        room = sys.modules[module.__name__.rpartition(".")[0]]
        if type(room) is ModuleType:
            room.__class__ = _Room
        names = vars(import_module(new)).items()
        vars(module).update({name: value for name, value in names if not name.startswith("__")})


def find_modules_at_old_paths() -> None:
    """Let `import` find modules where version 0.1.0 had them, after all other finders."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
