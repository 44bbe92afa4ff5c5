"""Every trial equals a whole hooked run, whatever was kept, removed and predicted before it."""

import oracles
import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from thresholds import SPEEDUPS
from walks import Walk, full_circuit, names_of

import circuitvit as cv
from circuitvit.discover.acdc.engine import circuit_state, incremental
from circuitvit.discover.acdc.engine.unit_forward import Heads
from circuitvit.graph.edge_graph import writers_of

ABLATIONS = ("patch", "zero", "mean")
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Truth:
    """The logits of whole hooked runs, in double precision, and how far a walk was from them."""

    def __init__(self, vit, pairs, ablation, reference=None):
        self.vit = cv.ViT(vit.config).double()
        self.vit.load_state_dict(vit.state_dict())
        self.clean, self.images = pairs.clean.double(), 0
        twins = cv.Pairs(clean=self.clean, corrupt=pairs.corrupt.double())
        reference = None if reference is None else reference.double()
        self.ablated = oracles.ablated_values(self.vit, twins, ablation, reference)
        self.worst, self.looks = 0.0, 0

    def look(self, kept, logits):
        wanted = oracles.circuit_logits(self.vit, kept, self.clean, self.ablated)
        self.worst = max(self.worst, float((logits - wanted).abs().max() / wanted.abs().max()))
        self.looks += 1


@pytest.mark.parametrize(("index", "name"), list(enumerate(SHAPES)))
def test_the_logits_of_every_trial_are_those_of_a_whole_run(index, name):
    """With and without all speed-ups, split and joint, one at a time and five."""
    vit = random_vit(shape(name), seed=20)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 4, seed=9)
    for moments, qkv, speedups in ((1, "joint", "all off"), (5, "split", "all on")):
        ablation = ABLATIONS[(index + moments) % 3]
        truth = Truth(vit, pairs, ablation, reference)
        options = vars(SPEEDUPS[speedups])
        walk = Walk(vit, pairs, ablation, reference=reference, seed=3, **options)
        walk.go(truth.look, qkv=qkv, moments=moments)
        assert truth.looks > 3
        assert walk.removed > 1
        assert truth.worst < CLOSE[torch.float64]


DEEP = shape(depth=4, heads=2, head_width=4, mlp_width=6)


@pytest.mark.parametrize(
    ("ablation", "dtype"),
    [("patch", torch.float64), *((ablation, torch.float32) for ablation in ABLATIONS)],
)
def test_a_long_walk_does_not_drift(ablation, dtype):
    """After a hundred removals the last trials are as good as the first."""
    vit = random_vit(DEEP, seed=21, dtype=dtype)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 4, seed=9)
    truth, seen = Truth(vit, pairs, ablation, reference), []

    def every_tenth(kept, logits):
        seen.append(kept)
        if len(seen) % 10 == 0:
            truth.look(kept, logits)

    walk = Walk(vit, pairs, ablation, reference=reference, seed=4, share=0.6, low_rank=True)
    walk.go(every_tenth, moments=2)
    assert walk.removed > 60
    assert truth.looks > 12
    assert truth.worst < CLOSE[dtype]


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_a_reader_that_one_trial_empties_reads_nothing_at_all(dtype, low_rank):
    """Without biases, under `zero`, a head without values writes 0, and m1 reads that alone."""
    vit = random_vit(shape(heads=1), seed=22, dtype=dtype)
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    pairs, kept = random_pairs(vit, 2), full_circuit(vit.config)
    kept["m1"] = {1}
    truth = Truth(vit, pairs, "zero")
    walk = Walk(vit, pairs, "zero", kept=kept, low_rank=low_rank)
    for unit in ("logits", "m1", "a1.h0", "m0", "a0.h0"):
        walk.run.open(unit)
    walk.run.begin(("a0.h0.v",), [0])
    logits = walk.run.try_removals(0, 1).logits[0]
    truth.look(names_of(vit.config, {**kept, "a0.h0.v": set()}), logits)
    assert truth.worst < CLOSE[dtype]


@pytest.mark.parametrize(
    ("dtype", "biases"),
    [
        (torch.float64, 0.01),
        (torch.float32, 0.3),
        (torch.float32, 0.01),
    ],
)
def test_nearly_emptied_readers_are_as_exact_as_whole_runs(dtype, biases):
    """Under `zero` with tiny biases, LayerNorm blows up whatever rounding is left in a reader."""
    vit = random_vit(shape(depth=3, heads=2, head_width=4), seed=22, dtype=dtype)
    for name, parameter in vit.named_parameters():
        if name.endswith("bias") and "head" not in name:
            parameter.mul_(biases)
    pairs, worst = random_pairs(vit, 2), []
    for speedups in ("all on", "all off"):
        truth, seen = Truth(vit, pairs, "zero"), []

        def every_fourth(kept, logits, truth=truth, seen=seen):
            seen.append(kept)
            if len(seen) % 4 == 0:
                truth.look(kept, logits)

        walk = Walk(vit, pairs, "zero", seed=5, share=0.85, **vars(SPEEDUPS[speedups]))
        walk.go(every_fourth, moments=2)
        assert walk.removed > 30
        worst.append(truth.worst)
    assert max(worst) < CLOSE[dtype]


def test_the_walks_would_notice_another_weight():
    vit, other = random_vit(shape(), seed=20), random_vit(shape(), seed=20)
    other.blocks[1].mlp.fc2.bias[0] += 1e-6
    pairs = random_pairs(vit, 2)
    truth = Truth(other, pairs, "patch")
    Walk(vit, pairs, "patch", seed=3).go(truth.look)
    assert truth.worst > CLOSE[torch.float64]


def test_what_drifts_is_summed_afresh(monkeypatch):
    """With hardly any rounding borne every trial sums; with any borne, none does."""
    vit = random_vit(DEEP, seed=21, dtype=torch.float32)
    pairs, sums = random_pairs(vit, 2), []
    real = incremental.State.read_anew

    def read_anew(state, reader, needs, trial):
        sums[-1] += 1
        return real(state, reader, needs, trial)

    monkeypatch.setattr(incremental.State, "read_anew", read_anew)
    for bound in (1e-9, 1e30):
        monkeypatch.setattr(circuit_state, "DRIFT", bound)
        sums.append(0)
        Walk(vit, pairs, "patch", seed=4).go(lambda kept, logits: None)
    assert sums[0] > 10
    assert sums[1] == 0


@pytest.mark.parametrize("batched", [True, False])
def test_heads_of_a_block_go_through_one_product_only_if_batched(batched, monkeypatch):
    vit = random_vit(DEEP, seed=21)
    together, real = [], Heads.project

    def project(weights, part, heads, reads):
        together.append(len(heads))
        return real(weights, part, heads, reads)

    monkeypatch.setattr(Heads, "project", project)
    walk = Walk(
        vit, random_pairs(vit, 2), "patch", seed=4, share=0.2, batched=batched, low_rank=False
    )
    walk.go(lambda kept, logits: None)
    assert max(together) == (2 if batched else 1)


def test_a_trial_runs_no_unit_upstream_and_none_that_reads_nothing_new():
    """A whole ablated run takes every unit; a trial takes its own and what follows."""
    vit = random_vit(DEEP, seed=21)
    pairs, names = random_pairs(vit, 2), writers_of(vit.config)

    def moved(kept):
        """By unit that is tried, those that a trial moved."""
        walk, found = Walk(vit, pairs, "patch", kept=kept), {}
        for unit, reader in (("logits", "logits"), ("m3", "m3"), ("a3.h1", "a3.h1.k")):
            walk.run.open(unit)
            walk.run.begin((reader,), sorted(walk.kept[reader], reverse=True))
            found[unit] = [names[place] for place in walk.run.try_removals(0, 1).shifts]
        return found

    kept = full_circuit(vit.config)
    assert moved(kept) == {"logits": [], "m3": ["m3"], "a3.h1": ["a3.h1", "m3"]}
    kept["m3"].discard(names.index("a3.h1"))
    assert moved(kept)["a3.h1"] == ["a3.h1"]  # m3 reads it no more


def test_what_is_tried_alters_nothing_until_it_is_committed():
    vit = random_vit(shape(), seed=23)
    pairs = random_pairs(vit, 2)
    walk = Walk(vit, pairs, "zero", low_rank=True)
    before = {name: p.clone() for name, p in vit.named_parameters()}
    walk.run.open("m1")
    walk.run.begin(("m1",), [3, 2, 1, 0])
    first = walk.run.try_removals(0, 2).logits.clone()
    walk.run.try_removals(0, 4, [3, 1])
    assert torch.equal(walk.run.try_removals(0, 2).logits, first)
    assert torch.allclose(walk.run.logits, vit(pairs.clean), atol=1e-12)
    assert all(torch.equal(before[name], p) for name, p in vit.named_parameters())
