"""Exact scores: ℓ(without it) − ℓ(full), for every edge, node or block on its own."""

import torch

from circuitvit.discover.acdc.decisions import Decisions
from circuitvit.discover.acdc.search import EdgeSearch
from circuitvit.discover.acdc.settings import SearchSettings
from circuitvit.discover.scores import names_at, units_at
from circuitvit.graph.circuit import Level
from circuitvit.graph.edge_graph import Qkv
from circuitvit.intervene.circuit_runs import logits_without
from circuitvit.intervene.task import PatchingTask
from circuitvit.progress import progress


@torch.no_grad()
def exact_scores(task: PatchingTask, level: Level, qkv: Qkv) -> dict[str, float]:
    """The exact score of everything at a level; of edges, as ACDC asks when all of them stay."""
    names = names_at(task.vit.config, level, qkv)
    if level == "edge":
        everything = Decisions(tau=-torch.inf, tie=0.0)
        with progress("exact scores", len(names)) as advance:
            EdgeSearch(SearchSettings(task, qkv=qkv), everything, keep_all=True).edges(advance)
        return everything.rises
    removed = [(), *(units_at(task.vit.config, level, [name]) for name in names)]
    with progress("exact scores", len(removed) * len(task.pairs)) as advance:
        full, *others = logits_without(task, removed, advance=advance)
    start = task.mean_loss(full, full)
    return {
        name: task.mean_loss(logits, full) - start
        for name, logits in zip(names, others, strict=True)
    }
