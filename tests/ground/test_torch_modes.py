"""What callers set in torch changes no result of a public function, and is as it was afterwards."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from small_training import blobs, make_vit

import circuitvit as cv
from circuitvit.measure import accuracy
from circuitvit.torch_modes import (
    AUTOCAST_DEVICES,
    default_modes,
    has_inference_tensors,
    in_default_modes,
)
from circuitvit.train import with_new_head


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def switched_off():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "gradients switched off": switched_off,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "double": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
    "meta device": lambda: default_device("meta"),
}


def settings():
    """Everything that a function could leave behind."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        [torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES],
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
    )


class Given:
    """A small model in single precision and what its public functions take."""

    def __init__(self, folder):
        self.folder, self.vit = folder, random_vit(shape(), seed=3, dtype=torch.float32)
        self.pairs, self.others = random_pairs(self.vit), random_pairs(self.vit, seed=1)
        self.images, self.labels = random_images(self.vit, 8), torch.arange(8) % 4
        graph = cv.edge_graph(self.vit.config)
        self.circuit = cv.Circuit(self.vit.config, [f"{w}->{r}" for w, r in graph.edges][::2])
        known = blobs(8)
        self.set = cv.ImageSet(known.images.float(), known.labels, known.class_names)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def scored(g):
    return dict(cv.eap(g.vit, g.pairs, method="eap-ig-inputs", steps=2))


def scored_neurons(g):
    return dict(cv.eap(g.vit, g.pairs, level="neuron", ablation="zero"))


def scored_exactly(g):
    return dict(cv.eap(g.vit, g.pairs, method="exact", level="node"))


def drawn(g):
    return dict(cv.eap(g.vit, g.pairs, method="random"))


def searched(g):
    return dict(cv.acdc(g.vit, g.pairs, tau=0.05, metric="logit_difference").scores)


def swept(g):
    return dict(cv.acdc_sweep(g.vit, g.pairs, [0.3], level="node")[0].scores)


def run(g):
    return cv.run_circuit(g.vit, g.circuit, g.pairs)


def masked(g):
    return cv.MaskedViT(g.vit, g.circuit, ablation="mean", reference=g.images).ablated


def compiled(g):
    return weights(cv.compile(g.vit, g.circuit, ablation="mean", reference=g.images))


def compiled_edges(g):
    return weights(cv.compile(g.vit, g.circuit, level="edge"))


def compiled_afresh(g):
    return weights(cv.compile(g.vit, g.circuit, fresh=True))


def pruned(g):
    return weights(cv.prune_mlp(cv.prune_heads(g.vit, {0: [1]}), {1: [0, 2]}))


def kept(g):
    return weights(cv.retain_circuit(g.vit, g.circuit))


def faithful(g):
    curve = cv.faithfulness_curve(
        g.vit, cv.eap(g.vit, g.others), g.pairs, bootstrap=9, controls=2, shares=(0.1, 0.5)
    )
    found = cv.across_ablations(g.vit, g.circuit, g.pairs, ablations=("zero",), bootstrap=9)
    return cv.faithfulness(g.vit, g.circuit, g.pairs, metric="kl"), numbers(curve), numbers(found)


def complete(g):
    few = g.circuit.keeping(g.circuit.edges[:5])
    one = cv.completeness(g.vit, g.circuit, g.pairs, ablation="zero", knockouts=2, bootstrap=9)
    return numbers(one), numbers(cv.minimality(g.vit, few, g.pairs, ablation="zero", bootstrap=9))


def numbers(result):
    """All numbers of a result, however deep."""
    if isinstance(result, float):
        return [result]
    inside = result.as_dict() if hasattr(result, "as_dict") else result
    each = inside.values() if isinstance(inside, dict) else inside
    return [x for one in each if not isinstance(one, str | int | None) for x in numbers(one)]


def measured(g):
    found = cv.measure({"dense": g.vit}, g.images, g.labels, batches=(1,), rounds=3)
    return found["dense"].accuracy.loss, found["dense"].macs


def evaluated(g):
    found = cv.evaluate({"dense": g.vit}, g.images, g.labels, batches=())
    return found["dense"].accuracy.loss, accuracy(g.vit, g.images, g.labels).loss


def exported(g):
    path = cv.export(g.vit, g.folder / "model.pt2")
    with torch.device("cpu"):
        return weights(torch.export.load(path).module())


def as_onnx(g):
    return cv.export(g.vit, g.folder / "model.onnx").exists()


def reloaded(g):
    g.vit.save_pretrained(g.folder / "folder")
    return weights(cv.ViT.from_pretrained(g.folder / "folder"))


def trained(g):
    recipe = cv.Recipe(epochs=1, batch=4, noise=0.1, drop_path=0.2, ema_decay=0.9)
    found = cv.train(g.vit, g.set, g.set, recipe, teacher=g.vit)
    return weights(found.vit), found.history[0]["loss"]


def adapted(g):
    recipe = cv.Recipe(epochs=1, batch=4, tune="adapter", adapter_width=2)
    found = cv.train(g.vit, g.set, g.set, recipe)
    return weights(found.adapter.apply(g.vit))


def new_head(g):
    return weights(with_new_head(g.vit, 7, seed=1))


def converted(g):
    foreign = cv.to_timm(g.vit)
    return weights(cv.load_vit(foreign)), weights(cv.load_vit(cv.to_transformers(g.vit)))


def as_folders(g):
    for library in ("timm", "transformers"):
        cv.export(g.vit, g.folder / library, to=library)
    return weights(cv.load_vit(g.folder / "timm")), weights(cv.load_vit(g.folder / "transformers"))


def paired(g):
    made = cv.Pairs.noised(g.set, count=1, right_for=g.vit)
    return made.clean, made.corrupt, made.labels, made.corrupt_labels


def from_arrays(g):
    pictures = np.arange(3 * 4 * 4).reshape(3, 4, 4).astype(np.uint8)
    made = cv.ImageSet.from_arrays(pictures, [0, 1, 2])
    return made.images, made.subset([2, 0]).images


DOORS = [
    scored, scored_neurons, scored_exactly, drawn, searched, swept, run, masked, compiled,
    compiled_edges, compiled_afresh, pruned, kept, faithful, complete, measured, evaluated,
    exported, as_onnx, reloaded, trained, adapted, new_head, converted, as_folders, paired,
    from_arrays,
]  # fmt: skip


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What each gives in torch's own modes."""
    known = {}

    def of(door):
        if door not in known:
            known[door] = door(Given(tmp_path_factory.mktemp("plain")))
        return known[door]

    return of


SLOW = (as_onnx, as_folders, exported, trained, measured)
CASES = [
    pytest.param(door, mode, id=f"{door.__name__}, {mode}")
    for door in DOORS
    for mode in MODES
    if door not in SLOW or mode in ("inference", "autocast")
]


@pytest.mark.parametrize(("door", "mode"), CASES)
def test_a_callers_mode_changes_no_result_and_is_as_before(door, mode, expected, tmp_path):
    wanted, given = expected(door), Given(tmp_path)
    with MODES[mode]():
        before = settings()
        found = door(given)
        assert settings() == before
    assert_same(found, wanted)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_model_that_was_made_in_inference_mode_works_outside(door, expected, tmp_path):
    with torch.inference_mode():
        given = Given(tmp_path)
        given.vit = copy.deepcopy(given.vit)
    assert has_inference_tensors(given.vit)
    before = given.vit.fingerprint()
    assert_same(door(given), expected(door))
    assert given.vit.fingerprint() == before


def test_models_built_loaded_and_converted_in_inference_mode_can_be_trained(tmp_path):
    make_vit().save_pretrained(tmp_path)
    with torch.inference_mode():
        built = make_vit()
        loaded = cv.ViT.from_pretrained(tmp_path)
        taken = cv.ViT.from_weights(
            built.config, dict(copy.deepcopy(built).state_dict()), source="x"
        )
        cast = make_vit().float().double()
    for vit in (built, loaded, taken, cast):
        assert not has_inference_tensors(vit)
        vit(blobs(4).images).sum().backward()
        assert vit.head.weight.grad is not None


def test_a_hooked_model_of_inference_tensors_passes_gradients_and_others_share_theirs():
    vit = random_vit(shape())
    assert cv.HookedViT(vit).vit is vit
    with torch.inference_mode():
        copied = copy.deepcopy(vit)
    cv.HookedViT(copied)(random_images(vit, 2)).sum().backward()


def test_modes_are_put_back_after_an_error():
    vit = random_vit(shape(), dtype=torch.float32)
    with torch.autocast("cpu"), torch.inference_mode(), default_dtype(torch.float64):
        before = settings()
        with pytest.raises(cv.CircuitError):
            cv.eap(vit, random_pairs(vit), method="magic")
        assert settings() == before


def test_what_asks_for_half_precision_gets_it_whatever_the_caller_does(tmp_path):
    given = Given(tmp_path)
    alone = cv.eap(given.vit, given.pairs, autocast="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dict(cv.eap(given.vit, given.pairs, autocast="bf16")) == dict(alone)
        single = cv.eap(given.vit, given.pairs)
    assert dict(single) != dict(alone)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a plain forward pass is torch's own affair
        assert given.vit(given.images).dtype == torch.bfloat16


def test_calls_that_overlap_in_threads_leave_the_default_dtype_as_it_was():
    inside, out = threading.Event(), threading.Event()

    @in_default_modes
    def first():
        inside.set()
        assert out.wait(10)
        return torch.get_default_dtype()

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(first)
            assert inside.wait(10)
            with default_modes():
                out.set()
                assert result.result(10) == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)
