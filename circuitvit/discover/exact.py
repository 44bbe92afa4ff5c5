"""Exact scores: ℓ(without it) − ℓ(full), for every edge, node or block on its own."""

import torch

from circuitvit.circuit import Level
from circuitvit.discover.acdc import without_units
from circuitvit.discover.incremental import IncrementalRun
from circuitvit.discover.problem import Problem
from circuitvit.discover.scores import names_at, units_at
from circuitvit.edge_graph import Edge, Qkv, node_named, writers_of
from circuitvit.progress import progress
from circuitvit.vit import PARTS


@torch.no_grad()
def exact_scores(problem: Problem, level: Level, qkv: Qkv) -> dict[str, float]:
    """The exact score of everything at a level, one ablated run each."""
    vit, pairs = problem.vit, problem.pairs
    ablated = problem.ablated(pairs)
    run = IncrementalRun(vit, pairs.clean, ablated)

    def mean_loss(logits: torch.Tensor) -> float:
        return float(problem.loss(logits, pairs, run.logits).double().mean())

    full, names = mean_loss(run.logits), names_at(vit.config, level, qkv)
    scores: dict[str, float] = {}
    with progress("exact scores", len(names)) as advance:
        for name in names:
            if level == "edge":
                logits = _without_edge(run, Edge(*name.split("->")))
            else:
                logits = without_units(problem, units_at(vit.config, level, [name]), ablated)
            scores[name] = mean_loss(logits) - full
            advance()
    return scores


def _without_edge(run: IncrementalRun, edge: Edge) -> torch.Tensor:
    node = node_named(edge.reader)
    joint = node.kind == "head" and node.part is None
    split = [f"{node.name}.{part}" for part in PARTS] if joint else [node.name]
    place = writers_of(run.vit.config).index(edge.writer)
    read = run.exact_read(split[0]) - run.difference(place)
    return run.try_read(dict.fromkeys(split, read)).logits
