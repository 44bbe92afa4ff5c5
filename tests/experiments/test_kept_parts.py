"""`experiments/kept_parts.py`: its masked runs and its searches against slow ones."""

import math
import random
import sys
from pathlib import Path

import pytest
import random_models
import torch

import circuitvit as cv
from circuitvit.graph.circuit import edges_among
from circuitvit.intervene.ablated_run import EdgeMask, RemovedNeurons, run_embedded
from circuitvit.intervene.writer_outputs import ablated_values, neuron_means

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import kept_parts as parts_of
from kept_parts import Ablated, Kept, MaskedRuns


def some_kept(config, seed):
    draw = random.Random(seed)

    def of(counts):
        return tuple(tuple(n for n in range(c) if draw.random() < 0.6) for c in counts)

    return Kept(of(config.heads), of(config.mlp_width))


def full_run(vit, images, kept, ablation, reference):
    """The slow way: every edge from a removed unit replaced, in the engine's own masked run."""
    ablated = ablated_values(vit, ablation, reference=reference)
    means = neuron_means(vit, reference)
    removed = {}
    for block, width in enumerate(vit.config.mlp_width):
        gone = torch.tensor([n not in kept.neurons[block] for n in range(width)], dtype=torch.bool)
        if kept.neurons[block] and gone.any():
            values = means[block] if ablation == "mean" else torch.zeros_like(means[block])
            removed[block] = RemovedNeurons(gone, values)
    mask = EdgeMask.of(vit.config, edges_among(vit.config, kept.units(), "split"))
    return run_embedded(vit, vit.embed(images), mask, ablated, neurons=removed).logits


@pytest.mark.parametrize("name", ["uniform", "ragged", "mean", "constants, quick"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@torch.no_grad()
def test_a_run_from_the_first_loss_on_is_the_full_masked_run(name, ablation):
    vit = random_models.random_vit(random_models.shape(name))
    images = draw(vit, 12)
    reference = draw(vit, 9, seed=5)
    runs = MaskedRuns(vit, images, Ablated.of(vit, ablation, reference))
    torch.testing.assert_close(runs.full, vit(images), rtol=0, atol=1e-10)
    whole = Kept.whole(vit.config)
    kept = [some_kept(vit.config, seed) for seed in range(6)]
    last = max(b for b, width in enumerate(vit.config.mlp_width) if width)
    kept += [whole, whole.without(neurons={last: [0, 2]}), whole.without(neurons={last: [1]})]
    moved = 0
    for some in kept:
        expected = full_run(vit, images, some, ablation, reference)
        torch.testing.assert_close(runs.logits(some), expected, rtol=0, atol=1e-9)
        moved += not torch.allclose(expected, runs.full, atol=1e-3)
        small = parts_of.compiled(vit, some, ablation, reference)
        torch.testing.assert_close(small(images), expected, rtol=0, atol=1e-9)
        assert list(small.config.mlp_width) == [len(n) for n in some.neurons]
        assert list(small.config.heads) == [len(h) for h in some.heads]
    assert moved >= 6


def draw(vit, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *random_models.image_shape(vit.config))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def kl(runs):
    def loss(kept):
        full, own = runs.full.log_softmax(-1), runs.logits(kept).log_softmax(-1)
        return float((full.exp() * (full - own)).sum(-1).mean())

    return loss


@pytest.mark.parametrize(
    ("level", "listed", "changes"),
    [
        ("block", parts_of.blocks_of, {"depth": 4}),
        # without MLPs, circuitvit's nodes are the heads
        ("node", parts_of.heads_of, {"depth": 3, "mlp_width": 0}),
    ],
)
def test_acdc_over_blocks_and_heads_is_that_of_circuitvit(level, listed, changes):
    vit = random_models.random_vit(random_models.shape(**changes), seed=3)
    images, reference = draw(vit, 16), draw(vit, 9, seed=5)
    runs = MaskedRuns(vit, images, Ablated.of(vit, "mean", reference))
    sizes = set()
    for tau in (0.003, 0.03, 0.1, 0.3, 1.0):
        circuit = cv.acdc(
            vit, cv.Pairs(clean=images), tau=tau, ablation="mean", reference=reference, level=level
        )
        found = parts_of.acdc_over(vit.config, listed(vit.config), kl(runs), tau)
        assert found.kept == Kept.of_units(vit.config, circuit.units())
        assert found.divergence == pytest.approx(circuit.provenance.divergence, abs=1e-9)
        sizes.add(len(circuit.units()))
    assert len(sizes) > 2


@torch.no_grad()
def test_acdc_over_neurons_is_the_slow_one():
    vit = random_models.random_vit(random_models.shape(mlp_width=12), seed=4)
    images, reference = draw(vit, 16), draw(vit, 9, seed=5)
    pairs = cv.Pairs(clean=images, corrupt=draw(vit, 16, seed=6))
    scores = cv.eap(vit, pairs, metric="kl", method="eap-ig-inputs", level="neuron")
    runs = MaskedRuns(vit, images, Ablated.of(vit, "mean", reference))
    sizes = set()
    for tau in (0.001, 0.01, 0.1):
        groups = parts_of.neuron_groups(vit.config, scores, 3)
        found = parts_of.acdc_over(vit.config, groups, kl(runs), tau)
        kept, current = Kept.whole(vit.config), 0.0
        for block in (1, 0):
            ranked = sorted(range(12), key=lambda n: abs(scores[f"m{block}.n{n}"]))
            for start in (0, 3, 6):  # the strongest three stay
                tried = kept.without(neurons={block: ranked[start : start + 3]})
                own = full_run(vit, images, tried, "mean", reference).log_softmax(-1)
                full = vit(images).log_softmax(-1)
                rise = float((full.exp() * (full - own)).sum(-1).mean())
                if rise - current < tau:
                    kept, current = tried, rise
        assert found.kept == kept
        assert found.divergence == pytest.approx(current, abs=1e-9)
        sizes.add(kept.counts()["neurons"])
    assert len(sizes) > 1


def test_random_prunings_have_their_size_differ_and_follow_their_seed():
    config = random_models.shape(depth=4)
    for level, total in (("blocks", 4), ("heads", 8), ("neurons", 24)):
        for count in (1, total // 2, total):
            drawn = parts_of.random_prunings(config, level, count, 5, seed=0)
            assert all(kept.counts()[level] == count for kept in drawn)
            assert len(drawn) == len(set(drawn)) == min(5, math.comb(total, count))
            assert drawn == parts_of.random_prunings(config, level, count, 5, seed=0)
        halves = [parts_of.random_prunings(config, level, total // 2, 5, seed=s) for s in (0, 1)]
        assert halves[0] != halves[1]
        if level == "heads":
            assert all(kept.counts()["neurons"] == 24 for kept in halves[0])
