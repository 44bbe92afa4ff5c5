"""Readers that follow a few heads are worked in the heads' width, and made in full where need be."""

import oracles
import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from walks import Walk, full_circuit, names_of

from circuitvit.discover.acdc.engine import circuit_state, incremental
from circuitvit.discover.acdc.engine import low_rank as followers
from circuitvit.discover.acdc.engine.low_rank import Followers

ABLATIONS = ("patch", "zero", "mean")
MANY = shape(depth=3, heads=(2, 5, 2), head_width=4, mlp_width=6)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def reads(monkeypatch):
    """What followers read, by kind."""
    kinds, real = [], Followers.read

    def read(self, name, trial):
        found = real(self, name, trial)
        kinds.append(type(found).__name__)
        return found

    monkeypatch.setattr(Followers, "read", read)
    return kinds


def walked(config=MANY, ablation="patch", **options):
    """How far the trials of a walk are from whole runs."""
    vit = random_vit(config, seed=80)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 4, seed=9)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    seen, worst = [], [0.0]

    def look(kept, logits):
        seen.append(kept)
        if len(seen) % 8 == 0:
            wanted = oracles.circuit_logits(vit, kept, pairs.clean, ablated)
            worst.append(float((logits - wanted).abs().max() / wanted.abs().max()))

    walk = Walk(vit, pairs, ablation, reference=reference, seed=6, share=0.6, **options)
    walk.go(look, moments=2)
    assert len(worst) > 10
    return max(worst)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_what_followers_read_gives_the_logits_of_whole_runs(ablation, batched, reads):
    assert walked(ablation=ablation, low_rank=True, batched=batched) < 1e-10
    assert reads.count("Projected") > 50


@pytest.mark.parametrize("options", [{"low_rank": False}, {"low_rank": True, "folded": False}])
def test_nothing_follows_where_that_is_not_wanted(options, reads):
    assert walked(**options) < 1e-10
    assert reads == []


@pytest.mark.parametrize(("least", "kind"), [(1e30, "Measured"), (0.0, "Projected")])
def test_a_length_that_cancels_is_made_in_full(least, kind, reads, monkeypatch):
    monkeypatch.setattr(circuit_state, "DRIFT", 1e30)
    monkeypatch.setattr(followers, "LEAST", least)
    assert walked(low_rank=True) < 1e-9
    assert set(reads) - {"NoneType"} == {kind}


@pytest.mark.parametrize(("least", "digits"), [(followers.LEAST, True), (0.0, False)])
def test_a_reader_that_loses_nearly_all_it_reads_keeps_its_digits(least, digits, monkeypatch):
    """Else its squared length would be the rounding of two large numbers' difference."""
    monkeypatch.setattr(followers, "LEAST", least)
    monkeypatch.setattr(circuit_state, "DRIFT", circuit_state.DRIFT if digits else 1e30)
    vit = random_vit(shape(depth=2, heads=1, head_width=8, mlp_width=6), seed=81)
    attention = vit.blocks[0].attention
    attention.qkv.bias.zero_()
    vit.blocks[0].ln1.bias.zero_()
    attention.out.weight.mul_(1e6)
    pairs, kept = random_pairs(vit, 2), full_circuit(vit.config)
    kept["m1"] = {1}  # all that it reads is a0.h0, and b_O
    walk = Walk(vit, pairs, "zero", kept=kept, low_rank=True)
    for unit in ("logits", "m1", "a1.h0", "m0", "a0.h0"):
        walk.run.open(unit)
    walk.run.begin(("a0.h0.v",), [0])
    logits = walk.run.try_removals(0, 1).logits[0]
    kept["a0.h0.v"] = set()
    ablated = oracles.ablated_values(vit, pairs, "zero")
    wanted = oracles.circuit_logits(vit, names_of(vit.config, kept), pairs.clean, ablated)
    assert (float((logits - wanted).abs().max()) < 1e-7) == digits


@pytest.mark.parametrize("most", [1, 2, 10])
def test_no_more_heads_are_followed_than_is_said(most, monkeypatch):
    monkeypatch.setattr(incremental, "MOST_HEADS", most)
    taken, real = [], Followers.__init__

    def made(self, state, reads):
        taken.extend(len(places) for _, places in reads.values())
        real(self, state, reads)

    monkeypatch.setattr(Followers, "__init__", made)
    assert walked(low_rank=True) < 1e-10
    assert max(taken) == most if most < 3 else max(taken) > 2


def test_a_follower_moves_on_only_when_its_heads_do():
    """What nobody changed is not asked for, so a trial takes it as it is."""
    vit = random_vit(MANY, seed=80)
    walk = Walk(vit, random_pairs(vit, 2), "patch", low_rank=True)
    for unit in ("logits", "m2", "a2.h1", "a2.h0"):
        walk.run.open(unit)
    walk.run.begin(("a2.h0.v",), [0])
    trial = walk.run.try_removals(0, 1)
    assert "m2" in walk.run._followers
    assert "m2" not in trial.reads  # its copy of the stream is brought up to date once
    walk.kept["a2.h0.v"].discard(0)
    before = walk.run._reads["m2"].now.x.clone()
    walk.run.commit(trial, 0)
    assert torch.equal(walk.run._reads["m2"].now.x, before)
    walk.run.open("m1")
    fresh = walk.run._state.read(walk.run._reads["m2"].reader, walk.run._reads["m2"].rows)
    assert not torch.allclose(fresh, before)
    assert torch.allclose(walk.run._reads["m2"].now.x, fresh, atol=1e-12)
