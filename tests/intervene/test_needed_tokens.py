"""UnitForward run only at the tokens that somebody needs."""

import pytest
import torch
from random_models import random_pairs, random_vit, shape
from thresholds import SEEDS
from walks import Walk

from circuitvit.discover.acdc.engine.circuit_state import UnitForward
from circuitvit.discover.acdc.engine.unit_forward import Neurons
from circuitvit.graph.edge_graph import node_named
from circuitvit.intervene.run_plan import narrowed, rows_of_logits, rows_read, rows_together

FC_NORM = "mean, fc_norm, no class token"


def test_logits_need_the_class_token_the_mean_or_everything():
    assert rows_of_logits(shape(), pooled=True) == "class"
    assert rows_of_logits(shape(FC_NORM), pooled=True) == "mean"
    assert rows_of_logits(shape("mean"), pooled=True) == "all"  # the LayerNorm comes first
    for name in ("uniform", FC_NORM, "mean"):
        assert rows_of_logits(shape(name), pooled=False) == "all"


@pytest.mark.parametrize(
    ("reader", "written", "needs"),
    [
        ("a1.h0.q", "class", "class"),
        ("a1.h0.k", "class", "all"),
        ("a1.h0.v", "class", "all"),
        ("m1", "class", "class"),
        ("a1.h0.q", "mean", "all"),
        ("m1", "mean", "all"),
        ("logits", "mean", "mean"),
        ("logits", "class", "class"),
        ("m1", "all", "all"),
    ],
)
def test_a_reader_needs_what_its_unit_writes_with(reader, written, needs):
    assert rows_read(node_named(reader), written) == needs


def test_readers_that_need_different_rows_need_all_together():
    assert rows_together(["class", "class"]) == "class"
    assert rows_together(["class", "mean"]) == "all"
    assert rows_together(["class", "all"]) == "all"


def test_rows_are_taken_from_all_tokens():
    x = torch.arange(24.0).view(2, 4, 3)
    assert torch.equal(narrowed(x, "all", "class", 2), x[:, :1])
    assert torch.allclose(narrowed(x, "all", "mean", 2), x[:, 2:].mean(dim=1, keepdim=True))
    assert narrowed(x, "class", "class", 2) is x
    with pytest.raises(AssertionError):
        narrowed(x, "class", "all", 2)


@pytest.fixture
def tokens(monkeypatch):
    """How many tokens each run of an MLP gave."""
    seen, real = [], Neurons.write

    def write(neurons, hidden):
        seen.append(hidden.shape[-2])
        return real(neurons, hidden)

    monkeypatch.setattr(Neurons, "write", write)
    return seen


def opened(name, pooled, units):
    vit = random_vit(shape(name, depth=3), seed=SEEDS[name])
    walk = Walk(vit, random_pairs(vit, 2), "patch", pooled=pooled, low_rank=False)
    for unit in units:
        walk.run.open(unit)
    return walk


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "pooled", "rows"),
    [("uniform", True, 1), ("uniform", False, 5), (FC_NORM, True, 1), ("mean", True, 5)],
)
def test_an_mlp_that_only_logits_reads_is_run_on_one_row(name, pooled, rows, tokens):
    walk = opened(name, pooled, ["logits"])
    tokens.clear()
    walk.run.open("m2")
    walk.run.begin(("m2",), [3, 2, 1, 0])
    walk.run.try_removals(0, 2)
    assert tokens == [rows, rows]


@torch.no_grad()
def test_an_mlp_that_a_later_key_reads_is_run_on_all_rows(tokens):
    walk = opened("uniform", True, ["logits", "m2", "a2.h1", "a2.h0"])
    tokens.clear()
    walk.run.open("m1")
    assert tokens == [5]
    for reader in ("a2.h0.k", "a2.h0.v", "a2.h1.k", "a2.h1.v"):
        walk.kept[reader].clear()
    walk = Walk(walk.vit, random_pairs(walk.vit, 2), "patch", low_rank=False)
    for reader in ("a2.h0.k", "a2.h0.v", "a2.h1.k", "a2.h1.v"):
        walk.kept[reader].clear()
    for unit in ("logits", "m2", "a2.h1", "a2.h0"):
        walk.run.open(unit)
    tokens.clear()
    walk.run.open("m1")
    assert tokens == [1]  # only queries and the last MLP read it now, for the class token


@torch.no_grad()
@pytest.mark.parametrize(("name", "rows"), [("uniform", 1), (FC_NORM, 1), ("mean", 5)])
def test_the_heads_of_the_last_block_write_only_what_is_read(name, rows, monkeypatch):
    """With `m2` gone, the heads of the last block write for `logits` alone."""
    shapes, real = [], UnitForward.run_heads

    def run_heads(units, *args):
        made = real(units, *args)
        shapes.append(made["z"].shape[-2])
        return made

    monkeypatch.setattr(UnitForward, "run_heads", run_heads)
    walk = opened(name, True, ["logits"])
    walk.kept["m2"].clear()
    walk.run.open("m2")
    shapes.clear()
    walk.run.open("a2.h1")
    assert shapes == [rows]
