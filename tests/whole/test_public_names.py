"""The contract: names, signatures, and an import that loads nothing heavy."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import circuitvit as cv


def test_importing_the_package_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import circuitvit;"
        "taken = time.perf_counter() - start;"
        "heavy = {'torch', 'transformer_lens', 'datasets', 'transformers', 'torchvision', 'plotly'};"
        "print(sorted(heavy & set(sys.modules)), taken < 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[] True"


def test_a_fresh_package_lists_its_public_names_without_loading_torch():
    code = "import sys, circuitvit as cv; print(dir(cv) == cv.__all__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True False"


def test_every_public_name_is_there():
    for name in cv.__all__:
        assert getattr(cv, name) is not None
    assert dir(cv) == cv.__all__
    assert sorted(cv.__all__) == cv.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cv.nothing  # noqa: B018


PARAMETERS = {
    "load_vit": ["image_size", "checkpoint", "heads", "preprocessing"],
    "to_timm": [],
    "to_transformers": [],
    "HookedViT": ["split_qkv"],
    "edge_graph": ["qkv"],
    "Pairs": ["clean", "corrupt", "labels", "corrupt_labels"],
    "eap": ["metric", "method", "steps", "ablation", "level", "qkv", "reference"],
    "acdc": ["tau", "ablation", "metric", "level", "qkv", "reference"],
    "run_circuit": ["ablation", "reference"],
    "compile": [
        "level", "ablation", "reference", "neurons", "keep_ratio", "multiple", "fresh", "seed",
        "target_latency", "target_macs", "target_parameters", "costs",
    ],
    "measure_costs": ["shapes", "batch", "rounds", "device", "dtype"],
    "savings": ["kept", "costs"],
    "faithfulness": ["metric", "ablation", "reference"],
    "faithfulness_curve": ["metric", "ablation", "reference", "shares", "controls", "seed"],
    "across_ablations": ["metric", "ablations", "reference", "seed"],
    "completeness": ["of", "knockouts", "metric", "ablation", "reference", "seed"],
    "minimality": ["metric", "ablation", "reference", "seed"],
    "class_circuits": [
        "classes", "find", "tau", "edges", "count", "seed", "metric", "ablation", "level", "qkv",
        "reference", "right_for", "resume",
    ],
    "random_units": ["price", "most", "count", "seed"],
    "random_edges": ["size", "qkv", "connected", "count", "seed"],
    "prune_heads": [],
    "prune_mlp": [],
    "retain_circuit": [],
    "measure": [],
    "evaluate": ["class_names", "baseline", "batches", "rounds", "seed"],
    "export": ["to", "dtype", "opset", "preprocess", "quantize"],
    "OnnxModel": ["path"],
    "train": ["folder", "teacher", "tensorboard", "progress", "log"],
    "write_card": ["dense", "circuit", "ablation", "report", "data", "command"],
}  # fmt: skip
DEFAULTS = {
    ("eap", "method"): "eap",
    ("eap", "steps"): 5,
    ("eap", "ablation"): "patch",
    ("eap", "level"): "edge",
    ("acdc", "tau"): 0.01,
    ("acdc", "ablation"): "patch",
    ("acdc", "metric"): "kl",
    ("acdc", "level"): "edge",
    ("run_circuit", "ablation"): "patch",
    ("compile", "level"): "unit",
    ("compile", "ablation"): None,
    ("edge_graph", "qkv"): "split",
    ("class_circuits", "count"): None,
    ("faithfulness", "metric"): None,
    ("faithfulness", "ablation"): None,
    ("faithfulness_curve", "metric"): None,
    ("faithfulness_curve", "ablation"): None,
    ("faithfulness_curve", "controls"): 15,
    ("completeness", "metric"): None,
    ("completeness", "ablation"): None,
    ("minimality", "metric"): None,
    ("minimality", "ablation"): None,
    ("across_ablations", "metric"): None,
    ("random_units", "count"): 15,
    ("random_edges", "count"): 15,
    ("random_edges", "connected"): True,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_signatures_are_those_of_the_contract(name):
    parameters = inspect.signature(getattr(cv, name)).parameters
    assert set(PARAMETERS[name]) <= set(parameters)
    for (function, parameter), default in DEFAULTS.items():
        if function == name:
            assert parameters[parameter].default == default


def test_the_number_of_pairs_has_one_default():
    for name in ("by_class", "by_category", "occluded", "noised", "against_mean"):
        assert inspect.signature(getattr(cv.Pairs, name)).parameters["count"].default is None, name


METHODS = {
    "ViT": ["save_pretrained", "from_pretrained", "forward", "predict", "history"],
    "HookedViT": ["run_with_cache", "run_with_hooks", "hook_dict", "hooks"],
    "Circuit": [
        "dangling", "without_dangling", "units", "graph", "save", "load", "figure", "to_html", "full",
    ],
    "EdgeScores": ["top", "greedy", "above", "keys", "items", "save", "load"],
    "Pairs": [
        "by_class", "by_category", "occluded", "noised", "against_mean", "remake", "batches",
        "save", "load", "subset", "to", "recipe",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_those_of_the_contract(name):
    from random_models import random_pairs, random_vit, shape

    vit = random_vit(shape())
    scores = cv.eap(vit, random_pairs(vit, 2))
    made = {
        "ViT": vit,
        "HookedViT": cv.HookedViT(vit),
        "EdgeScores": scores,
        "Circuit": scores.top(3),
        "Pairs": random_pairs(vit, 2),
    }
    assert isinstance(made[name], getattr(cv, name))
    for method in METHODS[name]:
        assert hasattr(made[name], method), method
    assert isinstance(made["Circuit"].edges, tuple)


@pytest.mark.parametrize("first", ["measure", "train", "edge_graph"])
def test_public_names_win_over_modules_so_called(first):
    code = (
        f"import circuitvit.{first}, circuitvit as cv;"
        f"from circuitvit import {first};"
        "import circuitvit.measure, circuitvit.train, circuitvit.graph.edge_graph;"
        "assert callable(cv.measure) and callable(cv.train) and callable(cv.edge_graph);"
        "from circuitvit.measure import accuracy; from circuitvit.train import Recipe;"
        "from circuitvit.graph.edge_graph import node_named"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchvision_and_timm_can_be_imported_after_the_first_touch():
    pytest.importorskip("timm")
    code = "import circuitvit as cv; cv.ViT; from torchvision.transforms import v2; import timm"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_saved_model_loads_without_what_only_discovery_needs(tmp_path):
    from random_models import random_vit, shape

    random_vit(shape()).save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "for name in ('transformer_lens', 'networkx', 'plotly', 'datasets', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from circuitvit.models.vit import ViT\n"
        f"vit = ViT.from_pretrained({str(tmp_path)!r})\n"
        "assert vit(torch.zeros(2, 1, 4, 4).double()).shape == (2, 4)\n"
        "import circuitvit as cv\n"
        f"assert cv.ViT.from_pretrained({str(tmp_path)!r}).config == vit.config\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_that_texts_of_the_package_speak_of_exist():
    """A message of training once recommended `ImageSet.of`, which never was."""
    import re

    classes = "ImageSet|Pairs|Circuit|EdgeScores|ViT|Recipe|Preprocessing"
    for path in (Path(cv.__file__).parent).rglob("*.py"):
        for name, attribute in re.findall(rf"\b({classes})\.([a-z]\w+)", path.read_text()):
            of = getattr(cv, name, None) or getattr(cv.images, name)
            known = hasattr(of, attribute) or attribute in getattr(of, "__annotations__", ())
            assert known, f"{path.name}: {name}.{attribute}"
