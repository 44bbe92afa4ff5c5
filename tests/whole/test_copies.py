"""Every public result and input object survives being copied, stored and sent to a worker."""

import copy
import importlib
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from public_things import MAKERS, made, same
from random_models import agree, random_images
from telling_pairs import telling_pairs, telling_vit

import circuitvit as cv


def stored(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": stored,
    **{
        f"pickle {protocol}": lambda thing, p=protocol: pickle.loads(pickle.dumps(thing, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


def public_classes():
    yield from ((cv, name) for name in cv.__all__)
    for room in ("discover", "images", "measure", "pretrained", "train"):
        module = importlib.import_module(f"circuitvit.{room}")
        yield from ((module, name) for name in module.__all__)


def test_every_public_class_is_tried():
    """A new public class fails here until `public_things.MAKERS` makes one of it."""
    tried = {type(made(name)) for name in MAKERS}
    classes = {
        kind for module, name in public_classes() if isinstance(kind := getattr(module, name), type)
    }
    assert classes - tried == set()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_copied_holds_the_same(name, way):
    thing = made(name)
    again = WAYS[way](thing)
    assert same(again, thing)
    assert same(WAYS[way](again), thing)
    if is_dataclass(thing) and fields(thing):
        with pytest.raises(FrozenInstanceError):
            setattr(again, fields(thing)[0].name, None)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_circuit_is_equal_and_as_immutable(way):
    circuit = made("circuit")
    again = WAYS[way](circuit)
    assert again == circuit
    assert hash(again) == hash(circuit)
    assert {circuit: "known"}[again] == "known"
    assert again.scores == circuit.scores
    assert circuit.edges[0] in again
    assert (again & circuit) == circuit
    with pytest.raises(TypeError):
        again.scores["embed->m0"] = 2.0
    with pytest.raises(AttributeError, match="circuits are immutable, so edges"):
        again.edges = ()
    with pytest.raises(AttributeError, match="circuits are immutable, so edges"):
        del again.edges
    assert again.without_dangling().provenance == circuit.without_dangling().provenance


@pytest.mark.parametrize("way", ["deepcopy", "pickle 4", "torch.save"])
def test_a_copied_model_computes_the_same_and_is_a_model_of_its_own(way):
    vit, images = telling_vit(), random_images(telling_vit(), 2)
    for name in ("vit", "circuit vit", "masked", "hooked"):
        model = made(name)
        again = WAYS[way](model)
        assert agree(again(images), model(images))
        with torch.no_grad():
            next(again.parameters()).mul_(3.0)
        assert not agree(again(images), model(images))
    hooked = WAYS[way](made("hooked"))
    assert hooked.hook_dict["blocks.0.hook_attn_out"] is hooked.blocks[0].hook_attn_out
    before = made("hooked")(images)
    with hooked.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: 0 * x)]):
        assert agree(made("hooked")(images), before)
        assert not agree(hooked(images), before)
    assert vit.fingerprint() == made("vit").fingerprint()


@pytest.mark.parametrize("way", ["deepcopy", "pickle 4"])
def test_a_copied_result_shows_itself_as_before(way):
    shown = [name for name in MAKERS if hasattr(made(name), "_repr_html_") and name != "figure"]
    assert {"circuit", "curve", "evaluation", "overlap", "report", "costs"} <= set(shown)
    for name in shown:
        assert WAYS[way](made(name))._repr_html_() == made(name)._repr_html_()


def sent_back(things):
    return things


def found(seed):
    vit = telling_vit()
    scores = cv.eap(vit, telling_pairs(vit, 3, seed=seed))
    return scores, scores.top(7)


def test_a_spawned_worker_takes_and_gives_back_every_public_object():
    things = {name: made(name) for name in MAKERS}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        again = pool.submit(sent_back, things).result()
        scores, circuit = pool.submit(found, 3).result()
        functions = pool.submit(sent_back, (cv.eap, cv.measure, cv.compile, cv.train)).result()
    assert [name for name in things if not same(again[name], things[name])] == []
    own_scores, own_circuit = found(3)
    assert circuit == own_circuit
    assert dict(scores) == pytest.approx(dict(own_scores), abs=1e-12)
    assert functions == (cv.eap, cv.measure, cv.compile, cv.train)


def test_a_worker_of_joblib_does_too():
    """Loky, by which scikit-learn and joblib run things side by side."""
    things = {name: made(name) for name in MAKERS}
    pool = get_reusable_executor(max_workers=1)
    try:
        again = pool.submit(sent_back, things).result()
    finally:
        pool.shutdown()
    assert [name for name in things if not same(again[name], things[name])] == []
