"""ACDC in its plainest form: one whole ablated run for every edge that is tried.

Start reading here. `cv.acdc` makes the same decisions with the incremental engine, some thousand
times faster. Left out: levels other than edges, other starts and orders, resuming.
"""

import torch

from circuitvit.discover.task import discovery_task
from circuitvit.graph.circuit import Ablation
from circuitvit.graph.edge_graph import Qkv, edge_names_of, edges_of, node_named
from circuitvit.images import Pairs
from circuitvit.intervene.ablated_run import EdgeMask, run_embedded
from circuitvit.intervene.metrics import Metric
from circuitvit.models.vit import ViT


@torch.no_grad()
def reference_acdc(
    vit: ViT,
    pairs: Pairs,
    *,
    tau: float,
    metric: Metric = "kl",
    ablation: Ablation = "patch",
    reference: torch.Tensor | None = None,
    qkv: Qkv = "split",
) -> dict[str, float]:
    """The edges that ACDC keeps, each with the rise of the metric that its removal would cost.

    D(H) = ℓ(H) − ℓ(full) is the metric of the circuit H above that of the model. Readers are tried
    from the logits back to the first block, the writers of each from the latest to the earliest. An
    edge is removed if D rises by less than τ. A reader whose node nobody reads loses all its edges.

    Args:
        vit: the model.
        pairs: clean images, with what the ablation and the metric need.
        tau: how much the metric may rise by one removal, > 0.
        metric: a name or a callable, to be minimised.
        ablation: what removed edges carry.
        reference: images for `mean`.
        qkv: whether a head's query, key and value read apart.
    """
    task = discovery_task(
        vit, pairs, metric=metric, ablation=ablation, level="edge", reference=reference
    )
    config = task.vit.config
    embedded, ablated = task.vit.embed(task.pairs.clean), task.ablated(task.pairs)
    full = task.vit(task.pairs.clean)

    def rise(kept: set[str]) -> float:
        """D of the circuit with these edges."""
        run = run_embedded(task.vit, embedded, EdgeMask.of(config, kept, qkv), ablated)
        return task.mean_loss(run.logits, full) - task.mean_loss(full, full)

    kept, rises, current = set(edge_names_of(config, qkv)), dict[str, float](), 0.0
    for edge in edges_of(config, qkv):
        unit = node_named(edge.reader).unit
        if unit != "logits" and not any(name.startswith(f"{unit}->") for name in kept):
            kept.discard(edge.name)
            continue
        without = rise(kept - {edge.name})
        if without - current < tau:
            kept.discard(edge.name)
            current = without
        else:
            rises[edge.name] = without - current
    return rises
