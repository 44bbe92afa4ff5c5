"""Files of version 0.1.0 load and mean what they meant; `tests/golden/make.py` made them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.pretrained import load_saved

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
KINDS = {
    "scores": cv.EdgeScores, "scores of neurons": cv.EdgeScores, "scores by position": cv.EdgeScores,
    "circuit": cv.Circuit, "overlap": cv.Overlap, "curve": cv.Curve,
    "completeness": cv.Completeness, "minimality": cv.Minimality,
    "across ablations": cv.AcrossAblations, "report": cv.Report, "costs": cv.Costs,
    "savings": cv.Savings,
}  # fmt: skip


def path_of(name, ending):
    return GOLDEN / f"{name.replace(' ', '_')}{ending}"


@pytest.mark.parametrize("name", KINDS)
def test_results_load_with_their_values(name):
    found, expected = KINDS[name].load(path_of(name, ".json")), EXPECTED[name]
    if name.startswith("scores"):
        assert dict(found) == expected["values"]
        assert found.provenance.method == expected["method"]
    elif name == "circuit":
        assert list(found.edges) == expected["edges"]
        assert dict(found.scores) == expected["scores"]
    elif "markdown" in expected:
        assert found.markdown() == expected["markdown"]
    else:
        assert repr(found) == expected["repr"]


def test_folders_of_circuits_and_evaluations_load():
    circuits = cv.ClassCircuits.load(GOLDEN / "class_circuits")
    assert {name: list(c.edges) for name, c in circuits.items()} == EXPECTED["class circuits"]
    evaluation = cv.Evaluation.load(GOLDEN / "evaluation")
    assert evaluation.markdown() == EXPECTED["evaluation"]["markdown"]


@pytest.mark.parametrize("name", ["pairs", "pairs with a recipe"])
def test_pairs_load(name):
    pairs = cv.Pairs.load(path_of(name, ".safetensors"))
    assert pairs.fingerprint() == EXPECTED[name]["fingerprint"]
    assert len(pairs) == EXPECTED[name]["images"]


@pytest.mark.parametrize("name", ["vit", "circuit vit", "half"])
def test_models_load_and_compute_the_same(name):
    model = load_saved(path_of(name, ""))
    assert model.fingerprint() == EXPECTED[name]["fingerprint"]
    if name != "half":
        images = torch.tensor(EXPECTED["images"], dtype=torch.float64)
        with torch.no_grad():
            logits = model(images.to(next(model.parameters()).dtype))
        expected = torch.tensor(EXPECTED[name]["logits"], dtype=logits.dtype)
        assert torch.allclose(logits, expected, atol=1e-6)


def test_an_adapter_loads():
    assert cv.Adapter.load(GOLDEN / "adapter.safetensors") is not None


def test_a_search_goes_on_from_its_file(tmp_path):
    shutil.copy(GOLDEN / "search.json", tmp_path / "search.json")
    vit = random_vit(shape(), seed=3)
    found = cv.acdc(vit, random_pairs(vit, 3), tau=0.02, resume=tmp_path / "search.json")
    assert list(found.edges) == EXPECTED["search"]["edges"]
