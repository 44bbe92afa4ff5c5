"""circuitvit finds the circuit inside a Vision Transformer and compiles it into a smaller one.

    import circuitvit as cv
    vit     = cv.load_vit(timm_module_or_folder)
    circuit = cv.acdc(vit, pairs, tau=0.01)
    small   = cv.compile(vit, circuit, level="unit", ablation="zero")

Importing the package loads no torch: names are looked up on first touch (PEP 562).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from circuitvit.old_paths import find_modules_at_old_paths

if TYPE_CHECKING:
    from circuitvit.compiler import compile  # noqa: A004
    from circuitvit.config import ViTConfig
    from circuitvit.discover import (
        ClassCircuits,
        EdgeScores,
        acdc,
        acdc_sweep,
        class_circuits,
        eap,
    )
    from circuitvit.errors import CircuitError
    from circuitvit.export import OnnxModel, export, to_timm, to_transformers, write_card
    from circuitvit.graph.circuit import Circuit, Provenance
    from circuitvit.graph.controls import random_edges, random_units
    from circuitvit.graph.edge_graph import edge_graph
    from circuitvit.graph.overlap import Overlap
    from circuitvit.images import ImageSet, Pairs, load_splits
    from circuitvit.intervene.ablated_run import MaskedViT, run_circuit
    from circuitvit.intervene.surgery import prune_heads, prune_mlp, retain_circuit
    from circuitvit.measure import (
        AcrossAblations,
        Completeness,
        Costs,
        Curve,
        Evaluation,
        Minimality,
        Report,
        Savings,
        across_ablations,
        completeness,
        evaluate,
        faithfulness,
        faithfulness_curve,
        measure,
        measure_costs,
        minimality,
        savings,
    )
    from circuitvit.models.circuit_vit import CircuitViT
    from circuitvit.models.hooked import HookedViT
    from circuitvit.models.vit import ViT
    from circuitvit.preprocessing import Preprocessing
    from circuitvit.pretrained import load_vit
    from circuitvit.train import Adapter, Recipe, train, with_new_head

__version__ = "0.1.0"

_WITHOUT_TORCH = {
    "Circuit": "graph.circuit",
    "CircuitError": "errors",
    "Overlap": "graph.overlap",
    "Preprocessing": "preprocessing",
    "Provenance": "graph.circuit",
    "ViTConfig": "config",
    "edge_graph": "graph.edge_graph",
}
_WITH_TORCH = {
    "AcrossAblations": "measure",
    "Adapter": "train",
    "CircuitViT": "models.circuit_vit",
    "ClassCircuits": "discover",
    "Completeness": "measure",
    "Costs": "measure",
    "Curve": "measure",
    "EdgeScores": "discover",
    "Evaluation": "measure",
    "HookedViT": "models.hooked",
    "ImageSet": "images",
    "MaskedViT": "intervene.ablated_run",
    "Minimality": "measure",
    "OnnxModel": "export",
    "Pairs": "images",
    "Recipe": "train",
    "Report": "measure",
    "Savings": "measure",
    "ViT": "models.vit",
    "acdc": "discover",
    "acdc_sweep": "discover",
    "across_ablations": "measure",
    "class_circuits": "discover",
    "compile": "compiler",
    "completeness": "measure",
    "eap": "discover",
    "evaluate": "measure",
    "export": "export",
    "faithfulness": "measure",
    "faithfulness_curve": "measure",
    "load_splits": "images",
    "load_vit": "pretrained",
    "measure": "measure",
    "measure_costs": "measure",
    "minimality": "measure",
    "prune_heads": "intervene.surgery",
    "prune_mlp": "intervene.surgery",
    "random_edges": "graph.controls",
    "random_units": "graph.controls",
    "retain_circuit": "intervene.surgery",
    "run_circuit": "intervene.ablated_run",
    "savings": "measure",
    "to_timm": "export",
    "to_transformers": "export",
    "train": "train",
    "with_new_head": "train",
    "write_card": "export",
}
_HOME = _WITHOUT_TORCH | _WITH_TORCH

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "AcrossAblations", "Adapter", "Circuit", "CircuitError", "CircuitViT", "ClassCircuits",
    "Completeness", "Costs", "Curve", "EdgeScores", "Evaluation", "HookedViT", "ImageSet",
    "MaskedViT", "Minimality", "OnnxModel", "Overlap", "Pairs", "Preprocessing", "Provenance",
    "Recipe", "Report", "Savings", "ViT", "ViTConfig", "acdc", "acdc_sweep", "across_ablations",
    "class_circuits", "compile", "completeness", "eap", "edge_graph", "evaluate", "export",
    "faithfulness", "faithfulness_curve", "load_splits", "load_vit", "measure", "measure_costs",
    "minimality", "prune_heads", "prune_mlp", "random_edges", "random_units", "retain_circuit",
    "run_circuit", "savings", "to_timm", "to_transformers", "train", "with_new_head", "write_card",
]  # fmt: skip


class _Package(ModuleType):
    """The package itself: public names come on first touch and win over modules so called.

    `circuitvit.measure` is the function, though there is a sub-package of that name; import from
    that as `from circuitvit.measure import …`.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'circuitvit' has no attribute {name!r}")
        if name in _WITH_TORCH:
            import_module("circuitvit.torchvision_ops").register_missing_ops()
        value = getattr(import_module(f"circuitvit.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(__all__)


sys.modules[__name__].__class__ = _Package
find_modules_at_old_paths()
