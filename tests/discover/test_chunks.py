"""Pairs that do not fit at once give the same decisions, and so does memory that runs out."""

import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from thresholds import SEEDS

import circuitvit as cv
from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.engine.incremental import IncrementalRun
from circuitvit.discover.acdc.search import EdgeSearch
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.discover.task import discovery_task
from circuitvit.intervene import batching, circuit_runs
from circuitvit.intervene.batching import images_that_fit, numbers_an_image

TAU = 0.02


def question(ablation="patch", count=4, name="uniform"):
    vit = random_vit(shape(name), seed=SEEDS[name])
    options = {"tau": TAU, "ablation": ablation, "qkv": "joint"}
    options["reference"] = random_images(vit, 4, seed=9)
    return vit, random_pairs(vit, count), options


def is_the_same(one, other):
    assert one.edges == other.edges
    assert one.scores == pytest.approx(other.scores, abs=1e-10)
    assert one.provenance.divergence == pytest.approx(other.provenance.divergence, abs=1e-10)
    assert one.provenance.evaluations == other.provenance.evaluations


@pytest.fixture
def sizes(monkeypatch):
    """How many images each run took."""
    taken, real = [], IncrementalRun.__init__

    def made(run, vit, clean, *args, **options):
        taken.append(len(clean))
        real(run, vit, clean, *args, **options)

    monkeypatch.setattr(IncrementalRun, "__init__", made)
    return taken


@pytest.mark.parametrize(
    ("ablation", "qkv"), [("patch", "joint"), ("zero", "split"), ("mean", "joint")]
)
def test_chunks_of_any_size_give_the_same_circuit(ablation, qkv, sizes):
    vit, pairs, options = question(ablation, count=3, name="ragged")
    options["qkv"] = qkv
    whole = cv.acdc(vit, pairs, **options)
    assert set(sizes) == {3}
    assert 3 < len(whole) < 26
    for images in (1, 2):
        sizes.clear()
        found = cv.acdc(vit, pairs, images_at_once=images, **options)
        is_the_same(found, whole)
        assert set(sizes) == {images, 1}


@pytest.mark.parametrize("speedups", [Speedups(states=1), Speedups(states=5, low_rank=True)])
def test_chunks_take_removals_one_at_a_time_or_together(speedups):
    vit, pairs, options = question("zero", count=3)
    whole = cv.acdc(vit, pairs, **options)
    found = cv.acdc(vit, pairs, images_at_once=2, speedups=speedups, **options)
    is_the_same(found, whole)


def test_chunks_of_nodes_give_the_same_circuit():
    vit, pairs, options = question("mean", count=3)
    whole = cv.acdc(vit, pairs, level="node", **options)
    is_the_same(cv.acdc(vit, pairs, level="node", images_at_once=2, **options), whole)


@torch.no_grad()
def test_exact_scores_are_the_same_chunk_by_chunk():
    vit, pairs, _ = question(count=3)
    task = discovery_task(vit, pairs, metric="kl", ablation="patch", level="edge", reference=None)
    found = []
    for images in (None, 1, 2):
        decisions = Decisions(tau=-torch.inf, tie=0.0)
        search = EdgeSearch(
            SearchSettings(task, qkv="joint", images=images), decisions, keep_all=True
        )
        search.edges(lambda note="", steps=1: None)
        found.append(decisions.rises)
    exact = cv.eap(vit, pairs, method="exact", metric="kl", qkv="joint")
    for rises in found:
        assert rises == pytest.approx(dict(exact), abs=1e-10)


def out_of_memory(monkeypatch, where, fits, *, error=None):
    """Let a method of the runs fail for more than `fits` images; gives the sizes that failed."""
    failed, sizes = [], {}
    make, real = IncrementalRun.__init__, getattr(IncrementalRun, where)
    error = error or RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9 bytes")

    def made(run, vit, clean, *args, **options):
        sizes[id(run)] = len(clean)
        (method if where == "__init__" else make)(run, vit, clean, *args, **options)

    def method(run, *args, **options):
        if sizes[id(run)] > fits:
            failed.append(sizes[id(run)])
            raise error
        return real(run, *args, **options)

    monkeypatch.setattr(IncrementalRun, where, method)
    monkeypatch.setattr(IncrementalRun, "__init__", made)
    return failed


@pytest.mark.parametrize(
    ("where", "fits"),
    [("__init__", 1), ("__init__", 3), ("open", 2), ("begin", 1), ("try_removals", 2)],
)
def test_memory_that_runs_out_halves_the_chunks(where, fits, monkeypatch):
    vit, pairs, options = question()
    whole = cv.acdc(vit, pairs, **options)
    failed = out_of_memory(monkeypatch, where, fits)
    is_the_same(cv.acdc(vit, pairs, **options), whole)
    assert failed == ([4, 2] if fits == 1 else [4])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["cuda", "python"]
)
def test_any_kind_of_memory_may_run_out(error, monkeypatch):
    vit, pairs, options = question()
    whole = cv.acdc(vit, pairs, **options)
    assert out_of_memory(monkeypatch, "try_removals", 2, error=error) == []
    is_the_same(cv.acdc(vit, pairs, **options), whole)


@pytest.mark.parametrize(
    "where",
    [
        "open",
        "begin",
        "try_removals",
        "keep",
        "commit",
    ],
)
@pytest.mark.parametrize("call", [1, 5])
def test_memory_that_runs_out_once_in_the_middle_is_made_do_without(where, call, monkeypatch):
    vit, pairs, options = question("zero")
    whole = cv.acdc(vit, pairs, **options)
    calls, real = [], getattr(IncrementalRun, where)

    def method(run, *args, **given):
        calls.append(where)
        if len(calls) == call:
            raise RuntimeError("CUDA error: out of memory")
        return real(run, *args, **given)

    monkeypatch.setattr(IncrementalRun, where, method)
    is_the_same(cv.acdc(vit, pairs, **options), whole)
    assert len(calls) >= call


def test_memory_may_run_out_while_the_start_of_a_search_is_measured(monkeypatch):
    vit, pairs, options = question()
    options["within"] = cv.eap(vit, pairs, qkv="joint").top(15)
    whole = cv.acdc(vit, pairs, **options)
    assert out_of_memory(monkeypatch, "__init__", 1) == []
    is_the_same(cv.acdc(vit, pairs, **options), whole)


def test_memory_that_does_not_suffice_for_one_pair_is_an_error(monkeypatch):
    vit, pairs, options = question()
    out_of_memory(monkeypatch, "begin", 0)
    with pytest.raises(cv.CircuitError, match="memory ran out with a single pair"):
        cv.acdc(vit, pairs, **options)


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    vit, pairs, options = question()
    failed = out_of_memory(monkeypatch, "begin", 0, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cv.acdc(vit, pairs, **options)
    assert failed == [4]


def free(monkeypatch, available):
    monkeypatch.setattr(batching, "free_memory", lambda device: available)


def test_as_many_pairs_are_held_as_the_free_memory_takes(monkeypatch, sizes):
    vit, pairs, options = question()
    one = 8 * numbers_an_image(vit.config)
    counts = []
    for available in (1, 2 * one, 4 * one, 40 * one):
        free(monkeypatch, available)
        counts.append(images_that_fit(vit))
    assert counts == [1, 1, 2, 28]
    whole = cv.acdc(vit, pairs, **options)
    assert set(sizes) == {4}
    sizes.clear()
    free(monkeypatch, 4 * one)
    is_the_same(cv.acdc(vit, pairs, **options), whole)
    assert set(sizes) == {2}


def test_a_run_of_a_big_model_is_planned_to_fit_12_gib():
    """ViT-B with 16 pairs, and DeiT-S with more."""
    base = cv.ViTConfig(image_size=224, patch_size=16, width=768, depth=12, heads=12)
    small = cv.ViTConfig(image_size=224, patch_size=16, width=384, depth=12, heads=6)
    assert 16 * 4 * numbers_an_image(base) < 12 * 2**30
    assert numbers_an_image(small) < numbers_an_image(base) / 3


def test_a_pass_holds_many_decisions_and_each_surprise_begins_another(sizes):
    vit, pairs, options = question(count=6, name="ragged")
    whole = cv.acdc(vit, pairs, **options)
    sizes.clear()
    is_the_same(cv.acdc(vit, pairs, images_at_once=3, **options), whole)
    passes = len(sizes) / 2
    assert 1 <= passes <= 1 + whole.provenance.evaluations / 4


def test_the_chunks_of_a_limited_address_space_give_the_same_circuit(monkeypatch, sizes):
    vit, pairs, options = question(count=6)
    whole = cv.acdc(vit, pairs, **options)
    one = 8 * numbers_an_image(vit.config)
    for pairs_left, taken in ((6, {6}), (3, {2})):
        sizes.clear()
        monkeypatch.setattr(batching, "address_space_left", lambda device, n=pairs_left: n * one)
        is_the_same(cv.acdc(vit, pairs, **options), whole)
        assert set(sizes) == taken


def test_memory_that_does_not_suffice_for_one_pair_of_a_node_search_is_an_error(monkeypatch):
    vit, pairs, options = question("zero")

    def refused(*given):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9 bytes")

    monkeypatch.setattr(circuit_runs, "Runs", refused)
    with pytest.raises(cv.CircuitError, match="memory ran out with a single pair"):
        cv.acdc(vit, pairs, level="node", **options)
