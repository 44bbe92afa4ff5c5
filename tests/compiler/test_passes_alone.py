"""The compiler's passes for edge circuits, each alone."""

import pytest
import torch
from random_models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.compiler.passes.fold_constants import fold_constants
from circuitvit.compiler.passes.lowering import lower
from circuitvit.compiler.passes.sharing import drop_dead, share
from circuitvit.compiler.program import Program
from circuitvit.graph.edge_graph import edge_names_of, places_of, readers_of
from circuitvit.intervene.writer_outputs import ablated_values
from circuitvit.models.hooked import HookedViT


def program_of(vit, edges, ablation="zero", reference=None):
    ablated = ablated_values(vit, ablation, reference=reference)
    with torch.no_grad():
        return Program.of(vit, cv.Circuit(vit.config, edges), ablated)


def heads_parts(head, writer="embed"):
    return [f"{writer}->{head}.{part}" for part in "qkv"]


@torch.no_grad()
def test_a_program_reads_constants_and_what_is_ablated():
    vit = random_vit(shape("constants, quick"), seed=1)
    reference = random_images(vit, 5)
    program = program_of(vit, ["embed->a0.h0.q", "a0.h1->m1"], "mean", reference)
    ablated = ablated_values(vit, "mean", reference=reference)[:, 0]
    places = places_of(vit.config)
    assert program.live("a0.h0.q") == ("embed",)
    assert torch.equal(program.table("a0.h0.q"), torch.zeros(1, 8).double())
    assert torch.allclose(program.table("a0.h0.k"), ablated[places["embed"]])
    gone = ablated[places["embed"]] + ablated[places["a0.h0"]]
    block0, block1 = vit.blocks
    constants = block0.attention_constant + block0.mlp_constant
    constants = constants + block1.output_bias + block1.attention_constant
    assert torch.allclose(program.table("m1"), gone + constants, atol=1e-12)


@torch.no_grad()
def test_nodes_that_lead_nowhere_are_not_run():
    vit = random_vit(shape(depth=3), seed=1)
    edges = [*heads_parts("a0.h0"), "a0.h0->m1", "embed->m0", "m0->a2.h1.q", "m1->logits"]
    program = drop_dead(program_of(vit, edges))
    assert set(program.kept) == {"logits", "m1", *(f"a0.h0.{part}" for part in "qkv")}
    assert drop_dead(program).kept == program.kept


@torch.no_grad()
def test_a_head_without_keys_has_a_uniform_pattern_and_no_queries():
    vit = random_vit(shape(), seed=1)
    edges = ["embed->a0.h0.q", "embed->a0.h0.v", "a0.h0->logits"]
    program = fold_constants(drop_dead(program_of(vit, edges)))
    assert torch.equal(program.patterns["a0.h0"], torch.full((1, 5), 0.2, dtype=torch.float64))
    assert not {"a0.h0.q", "a0.h0.k"} & set(program.kept)
    assert "a0.h0.v" in program.kept


@torch.no_grad()
def test_a_head_without_queries_keeps_a_live_pattern_with_one_row():
    vit = random_vit(shape(pooling="mean"), seed=1)
    edges = ["embed->a0.h0.k", "embed->a0.h0.v", "a0.h0->logits"]
    program = fold_constants(drop_dead(program_of(vit, edges)))
    assert program.parts["a0.h0.q"].shape == (1, 4)
    assert program.patterns == {}
    small = lower(share(program), torch.float64)
    assert small.plan.blocks[0].calls[0].rows == 1


@torch.no_grad()
def test_a_head_without_values_is_a_constant_whatever_its_pattern():
    """Against the hooked model's own head, run on an empty stream."""
    vit = random_vit(shape(), seed=1)
    program = program_of(vit, ["embed->a0.h0.q", "embed->a0.h0.k", "a0.h0->logits"])
    program = fold_constants(drop_dead(program))
    block = vit.blocks[0]
    value = block.ln1.bias @ block.attention.projection("v")[0][0].T
    value = (value + block.attention.projection("v")[1][0]) @ block.attention.output_weight()[0]
    assert torch.allclose(program.constants["a0.h0"], value[None], atol=1e-12)
    assert set(program.kept) == {"logits"}


@torch.no_grad()
def test_under_mean_patterns_and_values_are_tables_with_a_row_for_each_token():
    vit = random_vit(shape(depth=3), seed=1)
    reference = random_images(vit, 6)
    edges = ["embed->a0.h0.v", "a0.h0->m0", "m0->logits", "m0->a1.h0.q", "embed->a1.h0.k"]
    edges += ["a1.h0->logits"]
    program = fold_constants(drop_dead(program_of(vit, edges, "mean", reference)))
    ablated = ablated_values(vit, "mean", reference=reference)[:, 0]
    read = vit.blocks[0].ln1(ablated[0])
    attention = vit.blocks[0].attention
    q, k = ((read @ attention.projection(p)[0][0].T + attention.projection(p)[1][0]) for p in "qk")
    expected = (q @ k.T / 4**0.5).softmax(dim=-1)
    assert torch.allclose(program.patterns["a0.h0"], expected, atol=1e-12)
    assert program.parts["a1.h0.v"].shape == (5, 4)
    assert {"a1.h0.q", "a1.h0.k"} <= set(program.kept)


@torch.no_grad()
def test_constants_are_transitive_and_kept_constants_differ_from_ablated_ones():
    vit = random_vit(shape(depth=3), seed=1)
    reference = random_images(vit, 6)
    edges = ["m0->m1", "m1->logits", "embed->logits"]
    program = drop_dead(fold_constants(drop_dead(program_of(vit, edges, "mean", reference))))
    assert set(program.constants) == {"m0", "m1"}
    assert set(program.kept) == {"logits"}
    assert program.live("logits") == ("embed",)
    ablated = ablated_values(vit, "mean", reference=reference)[:, 0]
    assert (program.constants["m1"] - ablated[places_of(vit.config)["m1"]]).abs().max() > 0.1
    run = HookedViT(vit)  # the oracle: constants come out of whole runs, image by image
    images = random_images(vit, 2, seed=9)
    expected = cv.run_circuit(vit, edges, images, ablation="mean", reference=reference)
    table = program.table("logits")
    assert torch.allclose(vit.read_out(run.vit.embed(images) + table), expected, atol=1e-12)


@torch.no_grad()
def test_readers_with_the_same_writers_share_a_copy_and_heads_read_alike_a_write():
    vit = random_vit(shape(depth=2), seed=1)
    shared = share(drop_dead(program_of(vit, edge_names_of(vit.config))))
    assert [len(block.copies) for block in shared.blocks] == [1, 2]
    assert set(shared.blocks[0].copies[0].readers) == set(readers_of(vit.config)[-6:])
    assert shared.blocks[0].groups[0].writes == (("a0.h0", "a0.h1"),)
    at_first = shared.blocks[1].copies[1]
    assert at_first.readers == ("a1.h0.q", "a1.h1.q")
    assert at_first.first
    assert shared.blocks[1].mlp.first
    edges = [*heads_parts("a0.h0"), *heads_parts("a0.h1"), "a0.h0->m0", "a0.h0->logits"]
    edges += ["a0.h1->logits", "m0->logits", "m0->a1.h0.k", *heads_parts("a1.h0"), "a1.h0->logits"]
    shared = share(drop_dead(program_of(vit, edges)))
    assert sorted(shared.blocks[0].groups[0].writes + shared.blocks[0].groups[1].writes) == [
        ("a0.h0",), ("a0.h1",),
    ]  # fmt: skip
    assert [copy.writers for copy in shared.blocks[1].copies] == [
        ("embed", "m0"), ("embed",), ("embed",),
    ]  # fmt: skip
    assert shared.blocks[1].copies[2].first


@torch.no_grad()
def test_under_mean_pooling_nothing_is_run_at_one_token():
    vit = random_vit(shape("mean"), seed=1)
    shared = share(drop_dead(program_of(vit, edge_names_of(vit.config))))
    copies = [copy for block in shared.blocks for copy in (*block.copies, block.mlp)]
    assert not any(copy.first for copy in [*copies, shared.logits])


@torch.no_grad()
def test_lowered_weights_are_contiguous_and_have_the_exact_shapes():
    vit = random_vit(shape("registers, q/k norm, no qkv bias, tanh"), seed=1)
    edges = [*heads_parts("a0.h1"), "a0.h1->a1.h0.v", "embed->a1.h0.k", "a1.h0->m1", "m1->logits"]
    small = lower(share(fold_constants(drop_dead(program_of(vit, edges)))), torch.float32)
    block = small.blocks[0]
    assert block.projections[0].linear.weight.shape == (3 * 4, 8)
    assert block.writes[0].linear.weight.shape == (8, 4)
    assert block.mlp is None
    assert not [name for name, _ in small.named_parameters() if "ln" in name]
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in small.parameters())


@torch.no_grad()
@pytest.mark.parametrize("share_kept", [0.1, 1.0])
def test_tables_are_held_by_writers_only_where_that_needs_fewer_numbers(share_kept):
    vit = random_vit(shape(depth=4), seed=1)
    generator = torch.Generator().manual_seed(0)
    names = edge_names_of(vit.config)
    edges = [n for n in names if torch.rand((), generator=generator) < share_kept]
    program = drop_dead(fold_constants(drop_dead(
        program_of(vit, edges, "mean", random_images(vit, 4))
    )))  # fmt: skip
    shared = share(program)
    small = lower(shared, torch.float64)
    shifted = not torch.allclose(small.ends.positions, vit.positions)
    if share_kept == 1:
        assert not shifted
    stored = sum(small.plan.tables) * vit.config.width
    stored += sum(
        t.numel() for n, t in small.named_parameters() if ".writes." in n and "table" in n
    )
    mlps = [block.mlp.table for block in small.blocks if block.mlp is not None]
    stored += sum(table.numel() - vit.config.width for table in mlps)
    copies = [shared.logits, *(c for b in shared.blocks for c in (*b.copies, b.mlp) if c)]
    unshifted = {c.table[: 1 if c.first else None].numpy().tobytes(): c.table for c in copies}
    needed = sum(min(len(t), 5) * vit.config.width for t in unshifted.values() if t.any())
    assert stored <= needed


@torch.no_grad()
def test_sums_that_several_copies_contain_are_made_once():
    vit = random_vit(shape(depth=4), seed=1)
    small = lower(share(drop_dead(program_of(vit, edge_names_of(vit.config)))), torch.float64)
    reads = [read for block in small.plan.blocks for read in block.reads()]
    additions = [len(read.values) - 1 for read in [*reads, small.plan.logits]]
    assert additions == [0, 1, 1, 1, 1, 1, 1, 0, 1, 1]  # the last block's queries read its sum


def test_the_explanation_names_what_became_of_each_block():
    vit = random_vit(shape(depth=3), seed=1)
    edges = [*heads_parts("a0.h0"), "a0.h0->m1", "m1->logits", "embed->logits", "m0->m1"]
    edges += ["embed->a1.h1.v", "a0.h0->a1.h1.v", "a1.h1->logits", "a1.h0->logits"]
    text = cv.compile(vit, cv.Circuit(vit.config, edges), level="edge").explain()
    blocks = text.split("\nblock ")
    assert blocks[0].startswith("2 of 6 heads and 1 of 3 MLPs are run; MACs of the blocks")
    assert "run: heads 0; 3 queries, keys and values share 1 copy" in blocks[1]
    assert "removed: heads 1" in blocks[1]
    assert "constant, folded into tables: the MLP" in blocks[1]
    assert "constant, folded into tables: heads 0" in blocks[2]
    assert "static: the patterns of heads 1 are a row each" in blocks[2]
    assert "run: the MLP, which reads one value, at the first token alone" in blocks[2]
    assert "removed: heads 0, 1" in blocks[3]
    assert "removed: the MLP" in blocks[3]
    assert "(-100%)" in blocks[3]
