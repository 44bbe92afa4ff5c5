import pytest
import torch
from models import random_pairs, random_vit, shape
from torch.nn import functional as F

import circuitvit as cv
from circuitvit.metrics import NAMES, check_differentiable, loss_of

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
