"""Batches of pairs: any size gives the same scores, and memory that runs out makes them smaller."""

import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.discover.eap import edge_products as products
from circuitvit.discover.eap import gradient_passes as attribution
from circuitvit.intervene import batching

METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "gim")


def close(one, other):
    assert dict(one) == pytest.approx(dict(other), abs=1e-10)


@pytest.fixture
def sizes(monkeypatch):
    """How many images each pass took."""
    taken, real = [], attribution.record

    def record(vit, stream, **options):
        taken.append(len(stream))
        return real(vit, stream, **options)

    monkeypatch.setattr(attribution, "record", record)
    return taken


@pytest.mark.parametrize("images", [1, 3, 10])
@pytest.mark.parametrize("method", METHODS)
def test_batches_of_any_size_give_the_same_scores(method, images, sizes, monkeypatch):
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 10)
    whole = cv.eap(vit, pairs, method=method, steps=2)
    assert set(sizes) == {10}
    sizes.clear()
    monkeypatch.setattr(batching, "MOST_IMAGES_AT_ONCE", images)
    monkeypatch.setattr(products, "NUMBERS_AT_ONCE", 2 * 7 * 5 * 8)
    close(cv.eap(vit, pairs, method=method, steps=2), whole)
    assert max(sizes) == images


def test_the_scores_of_many_are_the_mean_of_those_of_each():
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 5)
    singles = [cv.eap(vit, pairs.subset([index])) for index in range(5)]
    for edge, score in cv.eap(vit, pairs).items():
        assert score == pytest.approx(sum(s[edge] for s in singles) / 5, abs=1e-10)


def test_a_batch_of_each_kind_of_model_fits_what_was_planned():
    with torch.device("meta"):
        base = cv.ViT(cv.ViTConfig())
        small = cv.ViT(cv.ViTConfig(image_size=32, patch_size=4, width=192, depth=6, heads=8))
    assert 8 <= batching.images_at_once(base) <= 16
    assert 32 <= batching.images_at_once(small) <= 256
    assert batching.images_at_once(cv.ViT(shape(depth=0))) == 256


def running_out(real, most, error):
    """A pass that fails with more than so many images."""

    def record(vit, stream, **options):
        if len(stream) > most:
            raise error
        return real(vit, stream, **options)

    return record


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("level", ["edge", "neuron"])
def test_when_memory_runs_out_smaller_batches_go_on(level, error, monkeypatch):
    vit = random_vit(shape(), seed=8)
    pairs, reference = random_pairs(vit, 11), random_images(vit, 2)
    options = dict(level=level, ablation="mean", reference=reference)
    whole = cv.eap(vit, pairs, **options)
    monkeypatch.setattr(attribution, "record", running_out(attribution.record, 2, error))
    close(cv.eap(vit, pairs, **options), whole)


def test_what_was_added_before_memory_ran_out_is_not_added_twice(monkeypatch):
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 8)
    whole, real, calls = cv.eap(vit, pairs, method="eap-ig-inputs"), attribution.record, []

    def record(vit, stream, **options):
        calls.append(len(stream))
        if len(calls) == 4:  # after the first of the five gradients
            raise torch.OutOfMemoryError("out of memory")
        return real(vit, stream, **options)

    monkeypatch.setattr(attribution, "record", record)
    close(cv.eap(vit, pairs, method="eap-ig-inputs"), whole)
    assert set(calls) == {8, 4}


def test_memory_that_does_not_suffice_for_one_pair_is_told(monkeypatch):
    vit = random_vit(shape(), seed=8)
    monkeypatch.setattr(attribution, "record", running_out(attribution.record, 0, ERRORS[0]))
    with pytest.raises(cv.CircuitError, match="memory ran out with a single pair"):
        cv.eap(vit, random_pairs(vit, 5))


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    vit = random_vit(shape(), seed=8)
    error = RuntimeError("shapes do not match")
    monkeypatch.setattr(attribution, "record", running_out(attribution.record, 0, error))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cv.eap(vit, random_pairs(vit, 5))


def test_off_a_terminal_nothing_is_written(capfd):
    vit = random_vit(shape())
    cv.eap(vit, random_pairs(vit, 3))
    assert capfd.readouterr() == ("", "")
