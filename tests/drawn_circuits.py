"""Circuits for the tests of the page; without torch."""

import numpy as np

from circuitvit.config import ViTConfig
from circuitvit.graph.circuit import Circuit, Provenance
from circuitvit.graph.controls import random_edges
from circuitvit.graph.edge_graph import edge_graph


def config(depth=4, heads=4):
    return ViTConfig(depth=depth, heads=heads, width=16 * heads, classes=10)


def circuit(depth=4, heads=4, edges=60, qkv="split"):
    """Edges of which none dangles with random signed scores, always the same."""
    shape = config(depth, heads)
    names = [edge.name for _, _, edge in edge_graph(shape, qkv).edges(data="edge")]
    drawn = np.random.default_rng(0).normal(size=len(names))
    scores = dict(zip(names, drawn.tolist(), strict=True))
    (kept,) = random_edges(shape, min(edges, len(names)), qkv=qkv, count=1)
    return Circuit(shape, kept, qkv=qkv, scores=scores, provenance=Provenance(tau=0.01))


def dangling_circuit():
    """A path, and two stronger edges that carry nothing under `patch`."""
    scores = {"embed->m0": 0.5, "m0->logits": -0.25, "embed->m1": 9.0, "a1.h0->logits": 8.0}
    origin = Provenance(method="acdc", ablation="patch")
    return Circuit(config(), scores, scores=scores, provenance=origin)
