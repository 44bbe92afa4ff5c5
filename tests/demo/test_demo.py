"""The demo end to end, with few epochs; the full one is `make demo`, which CI runs."""

import json

import pytest

import circuitvit as cv
from circuitvit import demo as module
from circuitvit.graph.edge_graph import units_of


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TAUS", (0.0225, 0.04))
        patch.setattr(module, "HELD_OUT_PAIRS", 64)
        patch.setattr(module, "RANDOM_CIRCUITS", 3)
        return folder, module.demo(folder, epochs=15, say=said.append), said


def test_the_demo_writes_its_results_and_they_load_back(ran):
    folder, result, said = ran
    names = {path.name for path in folder.iterdir()}
    files = {"report.md", "report.json", "circuit.json", "graph.html"}
    assert names == {*files, "dense", "compiled", "retrained"}
    assert cv.Circuit.load(folder / "circuit.json") == result.circuit
    dense, compiled = cv.load_vit(folder / "dense"), cv.load_vit(folder / "compiled")
    assert dense.config == module.SHAPE
    assert units_of(compiled.config)
    assert cv.load_vit(folder / "retrained").config == compiled.config
    assert dense.fingerprint() == result.circuit.provenance.model
    assert len(said) >= 5


def test_the_reports_figures_are_those_of_the_loaded_models(ran):
    from circuitvit.measure import accuracy, macs

    folder, _, _ = ran
    body = json.loads((folder / "report.json").read_text())
    test = cv.load_splits("digits", seed=0).test
    models = {"dense": "dense", "compiled": "compiled", "retrained from scratch": "retrained"}
    rows = {row["name"]: row for row in body["rows"]}
    for name, saved in models.items():
        vit = cv.load_vit(folder / saved)
        found = accuracy(vit, test.images, test.labels)
        assert rows[name]["accuracy"]["top1"] == found.top1
        assert rows[name]["macs"] == macs(vit, (1, 8, 8))
    saving = 1 - rows["compiled"]["macs"] / rows["dense"]["macs"]
    assert body["summary"]["macs_saved"] == pytest.approx(saving)
    assert saving >= module.LEAST_SAVING
    text = (folder / "report.md").read_text()
    assert f"{rows['dense']['accuracy']['top1']:.2%}" in text


def test_the_threshold_was_chosen_on_validation_alone(ran):
    _, result, _ = ran
    trials = result.summary["trials"]
    enough = [t for t in trials if t["macs_saved"] >= module.LEAST_SAVING]
    best = max(enough, key=lambda t: t["validation_faithfulness"])
    assert result.summary["tau"] == best["tau"]


def test_no_saving_is_refused(monkeypatch):
    shape = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 10}
    vit = cv.ViT(cv.ViTConfig(**shape, width=16, depth=1, heads=2, mlp_width=16))
    monkeypatch.setattr(module, "TAUS", (1e-12,))
    monkeypatch.setattr(module, "DISCOVERY_PAIRS", 2)
    with pytest.raises(cv.CircuitError, match="saves 25% of the MACs"):
        module.choose(vit, cv.load_splits("digits"), seed=0)
