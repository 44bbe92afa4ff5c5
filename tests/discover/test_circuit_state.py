"""What readers read, against sums of hooked writes."""

from dataclasses import FrozenInstanceError

import oracles
import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from walks import full_circuit, unit_of

import circuitvit as cv
from circuitvit.discover.acdc.engine.circuit_state import Speedups, State
from circuitvit.discover.acdc.engine.unit_forward import centred
from circuitvit.graph.edge_graph import node_named, writers_of
from circuitvit.intervene.run_plan import narrowed
from circuitvit.intervene.writer_outputs import ablated_writes


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def run_once(vit, pairs, ablation, kept, reference, **speedups):
    """A state whose writers wrote what they write in the untouched model."""
    ablated = ablated_writes(vit, ablation, corrupt=pairs.corrupt, reference=reference)
    state = State(vit, pairs.clean, ablated, kept, (), Speedups(**speedups))
    for index, block in enumerate(vit.blocks):
        hooked = oracles.write_values(cv.HookedViT(vit), pairs.clean)
        if block.attention is not None:
            stream = sum_before(vit, hooked, f"a{index}.h0")
            z = block.attention.mix(block.ln1(stream))
            state.writes |= {f"a{index}.h{h}": z[:, h] for h in range(z.shape[1])}
        if block.mlp is not None:
            state.writes[f"m{index}"] = state.units.plain(hooked[f"m{index}"])
    return state


def sum_before(vit, values, reader, ablated=None, kept=None):
    total = oracles.constants_before(vit, reader)
    for writer in oracles.writers_before(vit.config, reader):
        live = kept is None or writer in kept
        total = total + (values[writer] if live else ablated[writer])
    return total


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("ablation", ["patch", "zero", "mean"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_reader_reads_what_kept_writers_write_and_the_rest_of_it_ablated(name, ablation, folded):
    vit = random_vit(shape(name), seed=95)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 4, seed=9)
    draw = torch.Generator().manual_seed(1)
    kept = {
        reader: {p for p in places if torch.rand((), generator=draw) < 0.5}
        for reader, places in full_circuit(vit.config).items()
    }
    kept["logits"] = full_circuit(vit.config)["logits"]
    state = run_once(vit, pairs, ablation, kept, reference, folded=folded)
    clean = oracles.write_values(cv.HookedViT(vit), pairs.clean)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    names, prefix = writers_of(vit.config), vit.config.prefix_tokens
    for reader, places in kept.items():
        live = {names[place] for place in places}
        wanted = sum_before(vit, clean, unit_of(reader), ablated, live)
        wanted = wanted.expand(2, -1, -1)
        wanted = centred(wanted) if folded else wanted
        assert torch.allclose(state.read(node_named(reader), "all"), wanted, atol=1e-11)
        if vit.config.pooling == "class":
            row = narrowed(wanted, "all", "class", prefix)
            assert torch.allclose(state.read(node_named(reader), "class"), row, atol=1e-11)


def test_rows_follow_from_who_reads():
    vit = random_vit(shape(), seed=95)
    kept = full_circuit(vit.config)
    state = run_once(vit, random_pairs(vit, 2), "zero", kept, None)
    place = writers_of(vit.config).index
    assert state.find_rows("m1") == "class"
    assert state.find_rows("a1.h0") == "class"
    assert state.find_rows("m0") == "all"
    for reader in ("a1.h0.k", "a1.h0.v", "a1.h1.k", "a1.h1.v"):
        kept[reader].discard(place("m0"))
    assert state.find_rows("a1.h1") == "class"
    assert state.find_rows("m0") == "class"
    plain = run_once(vit, random_pairs(vit, 2), "zero", kept, None, pooled=False)
    assert plain.find_rows("m1") == "all"


def test_speedups_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Speedups().pooled = False
