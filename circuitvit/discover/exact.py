"""Exact scores: ℓ(without it) − ℓ(full), for every edge, node or block on its own."""

import torch

from circuitvit.circuit import Level
from circuitvit.discover.acdc import logits_without, mean_loss
from circuitvit.discover.decisions import Decisions
from circuitvit.discover.problem import Problem
from circuitvit.discover.scores import names_at, units_at
from circuitvit.discover.search import EdgeSearch
from circuitvit.edge_graph import Qkv
from circuitvit.progress import progress


@torch.no_grad()
def exact_scores(problem: Problem, level: Level, qkv: Qkv) -> dict[str, float]:
    """The exact score of everything at a level; of edges, as ACDC asks when all of them stay."""
    names = names_at(problem.vit.config, level, qkv)
    with progress("exact scores", len(names)) as advance:
        if level == "edge":
            everything = Decisions(tau=-torch.inf, tie=0.0)
            search = EdgeSearch(problem, everything, qkv=qkv, keep_all=True)
            search.edges(advance)
            return everything.rises
        full = logits_without(problem, ())
        start, scores = mean_loss(problem, full, full), dict[str, float]()
        for name in names:
            logits = logits_without(problem, units_at(problem.vit.config, level, [name]))
            scores[name] = mean_loss(problem, logits, full) - start
            advance()
    return scores
