"""Circuits run together are, each of them, the plain masked run."""

import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from torch.nn import functional as F

from circuitvit.graph.edge_graph import edge_names_of, edges_of, units_of
from circuitvit.intervene import circuit_runs as runs
from circuitvit.intervene.ablated_run import EdgeMask, run_embedded
from circuitvit.intervene.batching import images_in_chunk
from circuitvit.intervene.circuit_runs import Runs
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.intervene.writer_outputs import ablated_writes

ABLATIONS = ("patch", "zero", "mean")


def circuits_of(config, seed=0):
    """The whole model, none, random ones of all sizes, each less an edge, and without nodes."""
    generator = torch.Generator().manual_seed(seed)
    names = list(edge_names_of(config))
    found = [names, []]
    for share in (0.05, 0.3, 0.6, 0.95):
        keeps = torch.rand(len(names), generator=generator) < share
        some = [name for name, keep in zip(names, keeps, strict=True) if keep]
        found += [some, some[::2], some[:-1]]
    found += [[name for name in names if name not in names[n::7]] for n in (0, 3)]
    found += [[name for name in names if name != names[n]] for n in (0, 5, len(names) // 2, -1)]
    gone = units_of(config)
    found += [[e.name for e in edges_of(config) if e.writer != unit] for unit in gone[::2]]
    return found


def together(vit, pairs, ablation, reference, circuits):
    plan = RunPlan(vit.config, consistent=ablation == "patch")
    for edges in circuits:
        plan.add(edges)
    ablated = ablated_writes(vit, ablation, corrupt=pairs.corrupt, reference=reference)
    with torch.no_grad():
        return list(Runs(vit, plan, pairs.clean, ablated).logits())


def one_by_one(vit, pairs, ablation, reference, circuits):
    ablated = ablated_writes(vit, ablation, corrupt=pairs.corrupt, reference=reference).values(vit)
    with torch.no_grad():
        for edges in circuits:
            mask = EdgeMask.of(vit.config, edges)
            yield run_embedded(vit, vit.embed(pairs.clean), mask, ablated).logits


def differs(vit, ablation, circuits, pairs=None):
    pairs = random_pairs(vit, 3) if pairs is None else pairs
    reference = random_images(vit, 5, seed=3)
    found = together(vit, pairs, ablation, reference, circuits)
    expected = list(one_by_one(vit, pairs, ablation, reference, circuits))
    assert len(found) == len(expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_circuits_together_equal_masked_runs_one_by_one(name, ablation):
    vit = random_vit(shape(name), seed=2)
    assert differs(vit, ablation, circuits_of(vit.config)) < 1e-10


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_so_they_do_in_single_precision(ablation):
    vit = random_vit(shape(depth=3, heads=3), seed=2, dtype=torch.float32)
    assert differs(vit, ablation, circuits_of(vit.config)) < 1e-5


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(
    ("setting", "value"), [("FEW", 0), ("FEW", 99), ("LEAST", 1e9), ("NUMBERS_HELD", 0)]
)
def test_every_way_of_summing_and_holding_gives_the_same(monkeypatch, ablation, setting, value):
    monkeypatch.setattr(runs, setting, value)
    vit = random_vit(shape(depth=3), seed=2)
    assert differs(vit, ablation, circuits_of(vit.config)) < 1e-10


def test_what_is_left_of_a_huge_writer_is_summed_afresh(monkeypatch):
    """Without `embed` the stream is a ten-thousandth: where it is taken off, rounding is left."""
    vit = random_vit(shape(depth=2), seed=2, dtype=torch.float32)
    with torch.no_grad():
        vit.positions.mul_(3e5)
    apart = {"embed->logits", "embed->m1", "embed->a1.h0.v"}
    circuits = [[edge for edge in edge_names_of(vit.config) if edge not in apart]]
    assert differs(vit, "zero", circuits) < 1e-4
    monkeypatch.setattr(runs, "LEAST", 0.0)
    assert differs(vit, "zero", circuits) > 1e-3


def test_one_circuit_after_another_runs_only_what_differs(monkeypatch):
    """Of circuits without one edge each, only what lies behind the edge is run again."""
    vit, counts = random_vit(shape(depth=3)), {"attention": 0}
    pairs, everything = random_pairs(vit, 2), edge_names_of(vit.config)
    attend = F.scaled_dot_product_attention

    def counted(*given):
        counts["attention"] += 1
        return attend(*given)

    circuits = [everything, *([e for e in everything if e != edge] for edge in everything[:14])]
    readers = {edge.split("->")[1] for edge in everything[:14]}
    assert readers == {"logits", "m2"}
    ablated = ablated_writes(vit, "patch", corrupt=pairs.corrupt)
    plan = RunPlan(vit.config, consistent=True)
    for edges in circuits:
        plan.add(edges)
    monkeypatch.setattr(runs.F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        list(Runs(vit, plan, pairs.clean, ablated).logits())
    assert counts == {"attention": vit.config.depth}


def test_a_chunk_is_as_large_as_the_cache_takes():
    vit = random_vit(shape())
    assert images_in_chunk(vit) == 64  # the most
    wide = random_vit(shape(image_size=64, width=256, heads=1))
    assert wide.positions.numel() == 1025 * 256
    assert images_in_chunk(wide) == 1
    middle = random_vit(shape(image_size=16, width=256, heads=1))
    assert images_in_chunk(middle) == 2**19 // (65 * 256) == 31
