import pytest
import torch
from random_models import random_pairs, random_vit, shape
from torch.nn import functional as F

import circuitvit as cv
from circuitvit.intervene.metrics import NAMES, check_differentiable, loss_of

VIT = random_vit(shape())
PAIRS = random_pairs(VIT, 5)


def values_of(metric):
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    full = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    return loss_of(metric, PAIRS, 4)(logits, PAIRS, full), logits, full


def test_each_metric_is_what_its_name_says():
    rows = torch.arange(5)
    expected = {
        "logit_difference": lambda x, f: x[rows, PAIRS.corrupt_labels] - x[rows, PAIRS.labels],
        "cross_entropy": lambda x, f: F.cross_entropy(x, PAIRS.labels, reduction="none"),
        "probability": lambda x, f: -x.softmax(-1)[rows, PAIRS.labels],
        "kl": lambda x, f: F.kl_div(x.log_softmax(-1), f.softmax(-1), reduction="none").sum(-1),
        "accuracy": lambda x, f: -(x.argmax(-1) == PAIRS.labels).double(),
    }
    assert set(expected) == set(NAMES)
    for name, formula in expected.items():
        got, logits, full = values_of(name)
        assert torch.allclose(got, formula(logits, full), atol=1e-12), name
        assert got.shape == (5,)


def test_kl_of_the_model_with_itself_is_exactly_zero():
    logits = torch.randn(5, 4)
    assert torch.equal(loss_of("kl", PAIRS, 4)(logits, PAIRS, logits), torch.zeros(5))


def test_labels_are_checked_against_the_metric():
    bare = cv.Pairs(clean=PAIRS.clean)
    with pytest.raises(cv.CircuitError, match="needs labels, but the pairs have none"):
        loss_of("cross_entropy", bare, 4)
    with pytest.raises(cv.CircuitError, match="expected 0 to 2"):
        loss_of("logit_difference", PAIRS, 3)
    with pytest.raises(cv.CircuitError, match="expected one of"):
        loss_of("loss", PAIRS, 4)
    assert loss_of("kl", bare, 4)


def test_metrics_without_a_gradient_are_refused_where_one_is_needed():
    with pytest.raises(cv.CircuitError, match="accuracy has no gradient"):
        check_differentiable("accuracy", "eap-ig-inputs")
    with pytest.raises(cv.CircuitError, match="eap-ig-inputs"):
        check_differentiable("kl", "eap")
    for method in ("gim", "relp"):
        with pytest.raises(cv.CircuitError, match=f"plain {method} would score every edge 0"):
            check_differentiable("kl", method)
    with pytest.raises(cv.CircuitError, match="plain eap-ig-activations"):
        check_differentiable("kl", "eap-ig-activations", steps=1)
    check_differentiable("kl", "eap-ig-activations", steps=2)
    check_differentiable("kl", "eap-ig-inputs")
    check_differentiable("probability", "eap")


# Case 17 of the field's reports: labels from outside, while pairs come in batches


def outside(labels):
    def indexed(logits, pairs):
        return -logits[torch.arange(len(labels)), labels]

    def gathered(logits, pairs):
        return -logits.gather(1, labels[:, None])[:, 0] * torch.ones(len(labels))

    def all_at_once(logits, pairs):
        return torch.zeros(len(labels), dtype=logits.dtype) + logits.sum()

    return indexed, gathered, all_at_once


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_metric_with_labels_from_outside_is_told_to_take_the_batchs(which, monkeypatch):
    pairs = random_pairs(VIT, 6)
    metric = outside(pairs.labels)[which]
    cv.eap(VIT, pairs, metric=metric)  # all at once
    monkeypatch.setattr("circuitvit.intervene.batching.MOST_IMAGES_AT_ONCE", 4)
    told = r"given 4 of the 6 pairs, .*: take labels from the second argument \(pairs.labels"
    with pytest.raises(cv.CircuitError, match=told):
        cv.eap(VIT, pairs, metric=metric)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_acdc_with_few_images_held_at_once_says_the_same(which):
    pairs = random_pairs(VIT, 6)
    metric = outside(pairs.labels)[which]
    with pytest.raises(cv.CircuitError, match="given 2 of the 6 pairs, .* the second argument"):
        cv.acdc(VIT, pairs, metric=metric, images_at_once=2)
    few, many = (  # here the metric sees all pairs at once
        cv.acdc(VIT, pairs, metric=metric, level="node", tau=0.5, images_at_once=count)
        for count in (2, None)
    )
    assert few.edges == many.edges


def test_a_metrics_own_error_on_all_pairs_is_left_as_it_is():
    def broken(logits, pairs):
        raise IndexError("mine")

    def hungry(logits, pairs):
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(IndexError, match="mine"):
        cv.eap(VIT, PAIRS, metric=broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss_of(hungry, PAIRS, 4)(VIT(PAIRS.clean)[:2], PAIRS.subset([0, 1]), VIT(PAIRS.clean))
