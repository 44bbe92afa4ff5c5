"""Attention whose scores are so large that its pattern is one-hot."""

import pytest
import torch
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.discover.eap import backward_rules as rules
from circuitvit.discover.eap.backward_rules import GRADIENT


def saturated(scale, dtype=torch.float32, seed=0):
    """A model whose queries and keys are scaled, so that attention scores are up to scale² larger."""
    vit = random_vit(shape(), seed=seed, dtype=torch.float32)
    with torch.no_grad():
        for block in vit.blocks:
            queries_and_keys = 2 * block.attention.heads * block.attention.head_width
            block.attention.qkv.weight[:queries_and_keys] *= scale
            block.attention.qkv.bias[:queries_and_keys] *= scale
    return vit.to(dtype)


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations"])
@pytest.mark.parametrize("scale", [100, 1e4])
def test_one_hot_attention_scores_its_queries_and_keys_0(scale, method):
    """torch's fused backward pass gave scores of 13 here."""
    vit = saturated(scale)
    pairs = random_pairs(vit, 4)
    found = cv.eap(vit, pairs, method=method)
    exact = cv.eap(vit.double(), pairs.to(dtype=torch.float64), method=method)
    assert dict(found) == pytest.approx(dict(exact), abs=5e-4)
    if method == "eap":
        assert max(abs(found[n]) for n in found if n.endswith((".q", ".k"))) < 1e-5


def test_neurons_behind_one_hot_attention_are_scored_as_in_double():
    vit = saturated(1e4)
    pairs = random_pairs(vit, 4)
    found = cv.eap(vit, pairs, level="neuron")
    exact = cv.eap(vit.double(), pairs.to(dtype=torch.float64), level="neuron")
    assert dict(found) == pytest.approx(dict(exact), abs=1e-5)


def test_patterns_that_single_precision_can_not_tell_are_warned_of():
    """Two keys alike: the pattern is ½ and ½, and with scores of 10⁶ it is one by chance."""
    q = torch.full((1, 1, 1, 4), 1e4)
    k = torch.ones(1, 1, 2, 4).mul(1e3).requires_grad_(True)
    with pytest.warns(UserWarning, match=r"torch.float32 rounds patterns by up to .*float64"):
        GRADIENT.attend(q, k, torch.randn(1, 1, 2, 4))


def test_ordinary_attention_takes_the_fused_path(monkeypatch):
    vit = random_vit(shape(), dtype=torch.float32)

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(rules, "_attend_step_by_step", refuse)
    cv.eap(vit, random_pairs(vit, 2))
