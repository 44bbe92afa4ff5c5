"""Exact scores: ℓ(without it) − ℓ(full), for every edge, node or block on its own."""

import torch

from circuitvit.discover.acdc.acdc import logits_without, mean_loss
from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.discover.acdc.search import EdgeSearch
from circuitvit.discover.scores import names_at, units_at
from circuitvit.discover.task import Problem
from circuitvit.graph.circuit import Level
from circuitvit.graph.edge_graph import Qkv
from circuitvit.progress import progress


@torch.no_grad()
def exact_scores(problem: Problem, level: Level, qkv: Qkv) -> dict[str, float]:
    """The exact score of everything at a level; of edges, as ACDC asks when all of them stay."""
    names = names_at(problem.vit.config, level, qkv)
    if level == "edge":
        everything = Decisions(tau=-torch.inf, tie=0.0)
        with progress("exact scores", len(names)) as advance:
            EdgeSearch(problem, everything, qkv=qkv, keep_all=True).edges(advance)
        return everything.rises
    removed = [(), *(units_at(problem.vit.config, level, [name]) for name in names)]
    with progress("exact scores", len(removed) * len(problem.pairs)) as advance:
        full, *others = logits_without(problem, removed, advance=advance)
    start = mean_loss(problem, full, full)
    return {
        name: mean_loss(problem, logits, full) - start
        for name, logits in zip(names, others, strict=True)
    }
