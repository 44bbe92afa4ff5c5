import numpy as np
import pytest
import torch
from random_models import SHAPES, agree, random_images, random_vit, shape

import circuitvit as cv


def with_heads_silenced(vit, heads):
    """The same model with the output weights of some heads set to zero."""
    other = random_vit(vit.config, seed=1)
    with torch.no_grad():
        for block, indices in heads.items():
            for head in indices:
                width = vit.config.head_width[block]
                other.blocks[block].attention.out.weight[:, head * width : (head + 1) * width] = 0
    return other


@pytest.mark.parametrize("name", SHAPES)
def test_pruned_heads_write_nothing(name):
    vit = random_vit(shape(name), seed=1)
    images = random_images(vit, 4)
    removed = {
        block: list(range(0, heads, 2)) for block, heads in enumerate(vit.config.heads) if heads
    }
    small = cv.prune_heads(vit, removed)
    expected = with_heads_silenced(vit, removed)(images)
    assert torch.allclose(small(images), expected, rtol=0, atol=1e-12)
    assert (small(images) - vit(images)).abs().max() > 1e-3
    for block, heads in removed.items():
        assert small.config.heads[block] == vit.config.heads[block] - len(heads)


def test_a_block_without_heads_keeps_its_output_bias():
    vit = random_vit(shape(), seed=1)
    images = random_images(vit, 4)
    small = cv.prune_heads(vit, {0: [0, 1]})
    assert small.config.heads == (0, 2)
    assert small.blocks[0].attention is None
    assert small.blocks[0].ln1 is None
    assert torch.equal(small.blocks[0].output_bias, vit.blocks[0].output_bias)
    assert torch.allclose(small(images), with_heads_silenced(vit, {0: [0, 1]})(images), atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_pruned_neurons_are_as_if_never_active(name):
    vit = random_vit(shape(name), seed=1)
    images = random_images(vit, 4)
    for everything in (False, True):
        removed = {
            block: list(range(neurons if everything else neurons // 2))
            for block, neurons in enumerate(vit.config.mlp_width)
            if neurons
        }
        other = random_vit(vit.config, seed=1)
        with torch.no_grad():
            for block, indices in removed.items():
                other.blocks[block].mlp.fc2.weight[:, indices] = 0
        small = cv.prune_mlp(vit, removed)
        assert torch.allclose(small(images), other(images), rtol=0, atol=1e-12)
        for block, indices in removed.items():
            assert small.config.mlp_width[block] == vit.config.mlp_width[block] - len(indices)
            assert (small.blocks[block].mlp is None) == everything


def test_retain_circuit_keeps_its_units_with_dense_edges():
    vit = random_vit(shape(), seed=1)
    images = random_images(vit, 4)
    circuit = cv.Circuit(vit.config, ["embed->a0.h1.v", "a0.h1->m1", "m1->logits"])
    small = cv.retain_circuit(vit, circuit)
    assert small.config.heads == (1, 0)
    assert small.config.mlp_width == (0, 6)
    expected = cv.run_circuit(vit, circuit.unit_circuit(), images, ablation="zero")
    assert torch.allclose(small(images), expected, rtol=0, atol=1e-12)


def test_a_pruned_model_can_be_pruned_saved_and_trained_like_any_other(tmp_path):
    vit = random_vit(shape(), seed=1)
    images = random_images(vit, 4)
    small = cv.prune_mlp(cv.prune_heads(vit, {1: [0]}), {0: [1, 2]})
    small.save_pretrained(tmp_path)
    loaded = cv.load_vit(tmp_path)
    assert agree(loaded(images), small(images))
    loaded(images).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    assert all(parameter.is_contiguous() for parameter in small.parameters())


def test_the_callers_model_stays_as_it_is():
    vit = random_vit(shape(), seed=1).train()
    before = vit.fingerprint()
    small = cv.prune_mlp(cv.prune_heads(vit, {0: [0, 1]}), {1: range(6)})
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert vit.fingerprint() == before
    assert small.training


def test_what_does_not_exist_can_not_be_removed():
    vit = random_vit(shape())
    with pytest.raises(cv.CircuitError, match=r"block 5 does not exist.*so not head \[3, 2, 0\]"):
        cv.prune_heads(vit, {5: [0], 1: [3, 2, 0]})
    with pytest.raises(cv.CircuitError, match=r"block 0 has 6 neurons, so not neuron \[-1\]"):
        cv.prune_mlp(vit, {0: [-1]})
    with pytest.raises(cv.CircuitError, match="belongs to another model"):
        cv.retain_circuit(vit, cv.Circuit(shape(heads=(2, 1)), []))


def test_indices_may_be_tensors_arrays_or_masks(as_users_call):
    vit = random_vit(shape(), seed=1)
    expected = cv.prune_mlp(vit, {1: [4, 5]}).fingerprint()
    mask = [False] * 4 + [True] * 2
    for given in (
        torch.tensor([4, 5]),
        np.array([5, 4]),
        (4, 5),
        mask,
        np.array(mask),
        torch.tensor(mask),
    ):
        assert cv.prune_mlp(vit, {1: given}).fingerprint() == expected
    assert cv.prune_heads(vit, {np.int64(0): {1}}).config.heads == (1, 2)


def test_other_indices_are_refused(as_users_call):
    vit = random_vit(shape(), seed=1)
    for given in ([True, False], [1.0], 1, "12", [[1]], [6], None):
        with pytest.raises(cv.CircuitError, match="block 1 has 6 neurons, so not neuron"):
            cv.prune_mlp(vit, {1: given})
    with pytest.raises(cv.CircuitError, match=r"expected a circuitvit.ViT, got Linear"):
        cv.prune_heads(torch.nn.Linear(2, 2), {0: [1]})
