"""Circuits of random models for the tests: of edges, of units, with scores; and a table of costs."""

import warnings

import torch

import circuitvit as cv
from circuitvit.graph.circuit import edges_among
from circuitvit.graph.edge_graph import edge_names_of, units_of
from circuitvit.measure import Cost


def a_path(config, generator, qkv):
    """Edges of one path from embed to logits, through some of the units."""
    at, edges = "embed", []
    while at != "logits":
        onward = [e for e in edge_names_of(config, qkv) if e.startswith(f"{at}->")]
        edge = onward[int(torch.randint(len(onward), (), generator=generator))]
        edges.append(edge)
        at = edge.split("->")[1]
        at = at[:-2] if at[-2:] in (".q", ".k", ".v") else at
    return edges


def some_circuit(vit, seed, share, path, qkv="split"):
    generator = torch.Generator().manual_seed(seed)
    names = edge_names_of(vit.config, qkv)
    kept = {name for name in names if torch.rand((), generator=generator) < share}
    if path:
        kept |= set(a_path(vit.config, generator, qkv))
    return cv.Circuit(vit.config, kept, qkv=qkv)


def compiled(vit, circuit, ablation="zero", reference=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no kept path")
        return cv.compile(vit, circuit, level="edge", ablation=ablation, reference=reference)


def circuit_of_units(vit, seed, share=0.5):
    """A circuit with a path through each of some random units."""
    generator = torch.Generator().manual_seed(seed)
    units = [u for u in units_of(vit.config) if torch.rand((), generator=generator) < share]
    names = set(edge_names_of(vit.config))
    kept = {"embed->logits"}
    for unit in units:
        kept |= {name for name in (f"embed->{unit}", f"embed->{unit}.v") if name in names}
        kept.add(f"{unit}->logits")
    return cv.Circuit(vit.config, kept), units


def scored(vit, seed=0):
    """All units, with scores of their own of either sign."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(len(units_of(vit.config)), generator=generator) * 2 - 0.3).tolist()
    values = dict(zip(units_of(vit.config), drawn, strict=True))
    names = edges_among(vit.config, values, "split")
    return cv.Circuit(vit.config, names, scores=values)


def invented(config, seed=0):
    """A table with a random time for every part that can be left of a ViT."""
    generator = torch.Generator().manual_seed(seed)
    parts = {("embed", ()), ("addition", ()), ("read_out", ())}
    for heads, width in zip(config.heads, config.head_width, strict=True):
        parts |= {("attention", (count, width)) for count in range(1, heads + 1)}
    for neurons in config.mlp_width:
        parts |= {("mlp", (count,)) for count in range(1, neurons + 1)}
    size = {"attention": 4.0, "mlp": 0.5, "embed": 0.5, "read_out": 0.3, "addition": 0.1}
    times = {
        (op, shape): size[op] * (sum(shape[:1]) + float(torch.rand((), generator=generator)))
        for op, shape in sorted(parts)
    }
    return cv.Costs(config, 64, tuple(Cost(op, shape, ms) for (op, shape), ms in times.items()))
