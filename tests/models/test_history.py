"""What was done to a model stays with it: in memory, in config.json, on the card."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from small_training import blobs, make_vit

import circuitvit as cv
from circuitvit.models.history import LONGEST, MOST, VALUES, Step, after


def acts(model):
    return [step.act for step in model.history]


@pytest.fixture(scope="module")
def made():
    """A dense model, its circuit and a compiled, recovered one."""
    dense = make_vit()
    data = blobs()
    pairs = cv.Pairs(
        clean=data.images[:4], corrupt=data.images[4:8], labels=data.labels[:4],
        corrupt_labels=data.labels[4:8],
    )  # fmt: skip
    circuit = cv.eap(dense, pairs, ablation="zero", metric="cross_entropy").top(30)
    small = cv.compile(dense, circuit, target_macs=0.9)
    recipe = cv.Recipe(epochs=2, batch=16, warmup_epochs=1, keep_best=True)
    training = cv.train(small, data, data, recipe, teacher=dense)
    return dense, circuit, small, training, data, recipe


def test_compiling_and_training_tell_what_they_did(made):
    dense, circuit, small, training, data, recipe = made
    (compiled,) = small.history
    assert (compiled.act, compiled.model) == ("compiled", dense.fingerprint())
    assert compiled.version == cv.__version__
    assert compiled.details["found_by"] == "eap"
    assert compiled.details["selection"] == circuit.provenance.selection
    assert compiled.details["budget"] == {"target_macs": 0.9}
    total = cv.edge_graph(dense.config).number_of_edges()
    assert compiled.details["edges"] == f"{len(circuit)} of {total}"
    assert (
        compiled.details["heads_kept"] == f"{sum(small.config.heads)} of {sum(dense.config.heads)}"
    )
    assert "neurons" not in compiled.details
    assert "new_random_weights" not in compiled.details
    first, trained = training.vit.history
    assert first == compiled
    assert (trained.act, trained.model) == ("trained", small.fingerprint())
    assert trained.details["teacher"] == {"class": "ViT", "fingerprint": dense.fingerprint()}
    assert trained.details["recipe"] == recipe.as_dict()
    assert trained.details["epochs"] == 2
    assert trained.details["training_images"] == data.fingerprint()
    last = training.history[-1]["validation_accuracy"]
    assert trained.details["validation_accuracy"] == last
    assert training.best.history[-1].details["epochs"] == training.best_epoch
    assert dense.history == ()


def test_neurons_and_edges_and_fresh_weights_are_told():
    vit = random_vit(shape(), dtype=torch.float32)
    pairs = random_pairs(vit, 3)
    circuit = cv.eap(vit, pairs).top(30)
    neurons = cv.eap(vit, pairs, level="neuron")
    images = random_images(vit, 5)
    options = dict(neurons=neurons, keep_ratio=0.5, multiple=2)
    small = cv.compile(vit, circuit, ablation="mean", reference=images, **options)
    told = small.history[-1].details
    assert told["neurons"] == {"scored_by": "eap", "keep_ratio": 0.5, "multiple": 2}
    assert (told["ablation"], told["reference_images"]) == ("mean", 5)
    by_block = cv.compile(vit, circuit, neurons=neurons, keep_ratio={0: 0.5}, multiple=2)
    assert by_block.history[-1].details["neurons"]["keep_ratio"] == ["m0 0.5"]
    fresh = cv.compile(vit, circuit, fresh=True, seed=3)
    assert fresh.history[-1].details["new_random_weights"] == {"seed": 3}
    edges = cv.compile(vit, circuit, level="edge")
    assert edges.history[-1].details["level"] == "edge"


def test_surgery_and_a_new_head_are_told_and_copies_keep_it():
    vit = random_vit(shape(), dtype=torch.float32)
    circuit = cv.eap(vit, random_pairs(vit, 3)).top(30)
    model = cv.prune_heads(vit, {0: [1]})
    model = cv.prune_mlp(model, {1: [0, 1]})
    model = cv.with_new_head(model, 3, seed=2)
    names = ["heads pruned", "neurons pruned", "given a new head"]
    assert acts(model) == names
    assert model.history[0].details == {"heads_kept": "3 of 4", "neurons_kept": "12 of 12"}
    assert model.history[1].details["neurons_kept"] == "10 of 12"
    assert model.history[2].details == {"classes": 3, "seed": 2}
    assert acts(cv.retain_circuit(vit, circuit)) == ["cut to a circuit's units"]
    assert acts(copy.deepcopy(model)) == acts(cv.load_vit(model)) == names
    assert vit.history == ()


@pytest.mark.parametrize("level", ["unit", "edge"])
def test_it_is_saved_and_loaded_and_saved_again(tmp_path, level):
    vit = random_vit(shape(), dtype=torch.float32)
    circuit = cv.eap(vit, random_pairs(vit, 3)).top(30)
    small = cv.compile(vit, circuit, level=level)
    small.save_pretrained(tmp_path / "one")
    body = json.loads((tmp_path / "one" / "config.json").read_text())
    assert body["history"][0]["act"] == "compiled"
    again = type(small).from_pretrained(tmp_path / "one")
    assert again.history == small.history
    again.save_pretrained(tmp_path / "two")
    assert type(small).from_pretrained(tmp_path / "two").history == small.history
    assert again.fingerprint() == small.fingerprint()


def test_a_model_without_history_is_saved_as_ever(tmp_path):
    random_vit(shape()).save_pretrained(tmp_path)
    assert "history" not in json.loads((tmp_path / "config.json").read_text())
    assert cv.ViT.from_pretrained(tmp_path).history == ()


def test_history_may_be_added_and_edited_by_hand(tmp_path):
    """It is bound to nothing: neither to weights nor to the preprocessing's digest."""
    vit = random_vit(shape())
    vit.preprocessing = cv.Preprocessing(mean=0.3)
    vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    step = {"act": "found", "model": None, "details": {"where": "on the beach"}, "version": "0"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"history": [step]}))
    found = cv.ViT.from_pretrained(tmp_path)
    assert found.history == (Step("found", None, {"where": "on the beach"}, "0"),)
    assert found.preprocessing == vit.preprocessing


STEP = {"act": "found", "model": None, "details": {}, "version": "0"}


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (3, "steps is 3, expected a list"),
        ([STEP | {"act": 7}], r"steps\[0\].act is 7, expected a text"),
        ([{"act": "found"}], r"steps\[0\].model, .* are missing"),
        ([STEP | {"details": []}], "expected values by name"),
        ([STEP] * (MOST + 1), f"it has {MOST + 1} steps, at most {MOST} are read"),
        ([STEP | {"act": "x" * (LONGEST + 1)}], "is larger than any step"),
        ([STEP | {"details": {"a": "x" * (LONGEST + 1)}}], "is larger than any step"),
        ([STEP | {"details": {"a": [[1] * VALUES]}}], "is larger than any step"),
    ],
)
def test_a_hostile_history_is_left_out_with_a_warning(tmp_path, history, message, as_users_call):
    """It decides nothing, so the weights beside it stay of use."""
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": history}))
    with pytest.warns(UserWarning, match=message) as caught:
        found = cv.ViT.from_pretrained(tmp_path)
    assert "or remove `history` from it" in str(caught[0].message)
    assert found.history == ()
    assert found.fingerprint() == vit.fingerprint()


def test_unknown_fields_of_a_step_are_named(tmp_path):
    random_vit(shape()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    body = json.loads(path.read_text()) | {"history": [STEP | {"more": 1}]}
    path.write_text(json.dumps(body))
    with pytest.warns(UserWarning, match=r"doesn't know, so they are left out: steps\[0\].more"):
        assert cv.ViT.from_pretrained(tmp_path).history == (Step(**STEP),)


@pytest.mark.parametrize("history", [None, "x", (1,), ["a"]])
def test_something_else_is_refused_before_any_work(tmp_path, history, monkeypatch):
    vit = make_vit()
    data = blobs()
    loop = sys.modules["circuitvit.train.training"]._Loop
    monkeypatch.setattr(loop, "run", lambda *a, **k: pytest.fail("it was trained"))
    vit.history = history
    circuit = cv.Circuit.full(vit.config)
    for call in (
        lambda: vit.save_pretrained(tmp_path),
        lambda: cv.train(vit, data, data, cv.Recipe(epochs=1, batch=16)),
        lambda: cv.compile(vit, circuit),
        lambda: cv.prune_heads(vit, {0: [0]}),
        lambda: cv.with_new_head(vit, 3),
    ):
        with pytest.raises(cv.CircuitError, match="the model's history .*, expected a tuple of it"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((Step("x" * 3000, None, {}, "0"),), "x" * (LONGEST - 1) + "…"),
        ((Step("x", None, {"selection": "top 3 " * 500}, "0"),), "top 3 t…"),
        ((Step("x", None, {"a": list(range(3000)), "b": 2}, "0"),), "3,000 values, left out"),
        ((Step("x", None, {f"n{i}": i for i in range(3000)}, "0"),), "values left out 2504"),
        ((Step("x", None, {"a": 10**4000}, "0"),), "a number of some"),
        ((Step("x", None, {}, "0"),) * 200, "earlier steps left out 100"),
    ],
)
def test_what_is_too_large_is_cut_when_saved_and_says_so(tmp_path, steps, told, recwarn):
    vit = random_vit(shape())
    vit.history = steps
    vit.save_pretrained(tmp_path)
    found = cv.ViT.from_pretrained(tmp_path).history
    assert [str(w.message) for w in recwarn.list if "history" in str(w.message)] == []
    assert len(found) == min(len(steps), MOST)
    assert any(told[-20:] in text for step in found for text in (step.act, step.told()))


def test_a_long_selection_is_cut_when_the_step_is_made():
    vit = random_vit(shape(), dtype=torch.float32)
    full = cv.Circuit.full(vit.config)
    origin = replace(full.provenance, selection="top 3 " * 500)
    small = cv.compile(vit, cv.Circuit(vit.config, full.edges, provenance=origin))
    selection = small.history[0].details["selection"]
    assert len(selection) == LONGEST
    assert selection.endswith("…")


def test_of_many_steps_the_first_and_the_latest_stay():
    history = ()
    for number in range(MOST + 5):
        history = after(history, f"step {number}", {"none": None, "empty": {}}, None)
    assert len(history) == MOST
    assert history[0].act == "step 0"
    assert history[-1].act == f"step {MOST + 4}"
    assert history[1].act == "step 6"
    assert history[1].details == {"earlier_steps_left_out": 5}
    assert history[0].details == {}


def test_a_step_is_told_in_a_line():
    details = {"a_b": 1.23456, "c": [1, "x"], "d": {"e": True, "f": 2}, "g": True, "h": False}
    step = after((), "found", details, "0123")[0]
    assert step.told() == "a b 1.235; c 1, x; d: e True, f 2; g"
    assert replace(step, details={}).told() == ""
    nested = after((), "found", {"a": {"b": {"c": 1.23456, "d": [1, {"e": 2}]}}}, None)[0]
    assert nested.told() == "a: b (c 1.235, d (1, (e 2)))"


def test_the_card_tells_the_whole_history(made, tmp_path):
    dense, circuit, _, training, *_ = made
    training.vit.save_pretrained(tmp_path)
    path = cv.write_card(tmp_path, training.vit, dense=dense, circuit=circuit, ablation="zero")
    text = path.read_text()
    assert "## What was done to it" in text
    assert f"| 1 | compiled | {dense.fingerprint()} | found by eap; selection" in text
    assert "budget: target_macs 0.9" in text
    assert "| 2 | trained | " in text
    assert f"teacher: class ViT, fingerprint {dense.fingerprint()}" in text
    recipe = "recipe: epochs 2, batch 16, warmup\\_epochs 1, keep\\_best True;"
    assert recipe.replace("\\_", "_") in text.replace("\\_", "_")
    assert "weight_decay" not in text.replace("\\_", "_")
    assert cv.ViT.from_pretrained(tmp_path).card == text
