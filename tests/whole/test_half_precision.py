"""A model in half precision: metrics, sums and searches are computed in single."""

import copy

import pytest
import torch
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.intervene.metrics import NAMES, loss_of

HALVES = [torch.bfloat16, torch.float16]


def in_half(dtype, name="uniform", seed=0):
    """A model and pairs in half precision, and the same weights and pixels in single."""
    vit = random_vit(shape(name), seed=seed, dtype=torch.float32).to(dtype)
    pairs = random_pairs(vit, 4)
    return vit, pairs, copy.deepcopy(vit).float(), pairs.to(dtype=torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("metric", NAMES)
def test_a_metric_of_logits_in_half_is_that_of_the_same_logits_in_double(metric, dtype):
    pairs = random_pairs(random_vit(shape()), 64)
    generator = torch.Generator().manual_seed(0)
    full = (3 * torch.randn(64, 4, generator=generator)).to(dtype)
    logits = (full.float() + 0.02 * torch.randn(64, 4, generator=generator)).to(dtype)
    loss = loss_of(metric, pairs, 4)
    values = loss(logits, pairs, full)
    assert values.dtype == torch.float32
    exact = loss(logits.double(), pairs, full.double())
    assert torch.allclose(values.double(), exact, atol=2e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_kl_per_image_is_not_negative_in_half(dtype):
    pairs = random_pairs(random_vit(shape()), 64)
    full = (3 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    near = torch.where(torch.arange(4) == 0, full * (1 + torch.finfo(dtype).eps), full)
    values = loss_of("kl", pairs, 4)(near, pairs, full)
    assert values.min() >= -1e-7
    assert values.max() > 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_a_custom_metric_gets_logits_in_single_and_a_copy_of_its_own(dtype):
    pairs = random_pairs(random_vit(shape()), 3)
    logits = torch.ones(3, 4, dtype=dtype)

    def metric(logits, pairs):
        assert logits.dtype == torch.float32
        return logits.mul_(2)[:, 0].to(dtype)

    values = loss_of(metric, pairs, 4)(logits, pairs, logits)
    assert values.dtype == torch.float32
    assert values.tolist() == [2.0, 2.0, 2.0]
    assert logits.tolist() == torch.ones(3, 4).tolist()


def test_a_metric_that_writes_to_its_logits_changes_no_decision():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)

    def plain(logits, pairs):
        return logits[:, 1] - logits[:, 0]

    def writing(logits, pairs):
        logits[:, 1] -= logits[:, 0]
        return logits[:, 1]

    for level in ("edge", "node"):
        found = [cv.acdc(vit, pairs, tau=0.1, metric=m, level=level) for m in (plain, writing)]
        assert found[0].edges == found[1].edges
    scores = [cv.eap(vit, pairs, metric=m) for m in (plain, writing)]
    assert dict(scores[0]) == pytest.approx(dict(scores[1]), abs=1e-12)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
def test_acdc_of_a_model_in_half_decides_as_on_its_weights_in_single(ablation, dtype):
    vit, pairs, same, pixels = in_half(dtype)
    options = {"tau": 0.02, "metric": "cross_entropy", "ablation": ablation}
    given = {"reference": pairs.corrupt} if ablation == "mean" else {}
    single = {"reference": pixels.corrupt} if ablation == "mean" else {}
    for level in ("edge", "node"):
        found = cv.acdc(vit, pairs, level=level, **options, **given)
        expected = cv.acdc(same, pixels, level=level, **options, **single)
        assert 0 < len(found) < 46
        assert found.edges == expected.edges
        assert dict(found.scores) == dict(expected.scores)
    assert next(vit.parameters()).dtype == dtype
    assert found.provenance.data == pairs.fingerprint()
    assert found.provenance.model == vit.fingerprint()
    if ablation == "mean":
        assert found.provenance.reference != expected.provenance.reference


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "gim", "relp", "exact"])
def test_eap_of_a_model_in_half_scores_as_on_its_weights_in_single(method, dtype):
    vit, pairs, same, pixels = in_half(dtype)
    assert dict(cv.eap(vit, pairs, method=method)) == dict(cv.eap(same, pixels, method=method))
    if method != "exact":
        neurons = cv.eap(vit, pairs, method=method, level="neuron")
        assert dict(neurons) == dict(cv.eap(same, pixels, method=method, level="neuron"))


def test_ties_are_by_the_rounding_error_of_the_models_dtype():
    """τ is a five-thousandth below what the removal of the first kept edge costs."""
    half, pairs, _, _ = in_half(torch.bfloat16)
    ties = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        vit, own = copy.deepcopy(half).to(dtype), pairs.to(dtype=dtype)
        rises = cv.acdc(vit, own, tau=0.02, metric="cross_entropy").scores
        first = next(iter(rises.values()))  # before it nothing else was decided otherwise
        assert 0.02 < first < 3
        found = cv.acdc(vit, own, tau=first * (1 - 2e-4), metric="cross_entropy")
        ties[dtype] = found.provenance.ties
    assert ties[torch.float64] == ties[torch.float32] == ()
    assert len(ties[torch.bfloat16]) > 0


@pytest.mark.parametrize("dtype", HALVES)
def test_circuits_of_a_model_in_half_are_judged_as_on_its_weights_in_single(dtype):
    vit, pairs, same, pixels = in_half(dtype)
    scores = cv.eap(same, pixels)
    circuit = scores.top(30)
    for given in ({}, {"ablation": "mean"}):
        found, expected = (
            cv.faithfulness(
                model, circuit, own, metric="kl", **given,
                **({"reference": own.corrupt} if given else {}),
            )
            for model, own in ((vit, pairs), (same, pixels))
        )  # fmt: skip
        assert found == expected
    curve = cv.faithfulness_curve(vit, scores, pairs)
    assert curve.conditions.data == pairs.fingerprint()
    assert next(vit.parameters()).dtype == dtype
