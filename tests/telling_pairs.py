"""Pairs on which a random model behaves differently, and the slow truth about circuits on them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from oracles import ablated_values, circuit_logits, loss
from random_models import random_images, random_vit, shape
from torch import Tensor

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of


def telling_vit(**changes) -> cv.ViT:
    """A random model that predicts several classes."""
    return random_vit(shape(**changes), seed=4)


def telling_pairs(vit: cv.ViT, count: int, seed: int = 0) -> cv.Pairs:
    """Labels are the model's own classes, and those of a pair differ."""
    pool = random_images(vit, 60 * count, seed)
    with torch.no_grad():
        classes = vit(pool).argmax(-1)
    partners = [int((classes != classes[i]).nonzero()[i % 7]) for i in range(count)]
    return cv.Pairs(
        clean=pool[:count],
        corrupt=pool[partners],
        labels=classes[:count],
        corrupt_labels=classes[partners],
    )


def slow_metric(
    vit: cv.ViT,
    kept: Iterable[str],
    pairs: cv.Pairs,
    metric: str,
    ablation: str,
    reference: Tensor | None = None,
    qkv: str = "split",
) -> float:
    """The mean metric by one hooked pass of all pairs at once."""
    ablated = ablated_values(vit, pairs, ablation, reference)
    with torch.no_grad():
        full = vit(pairs.clean)
    logits = circuit_logits(vit, kept, pairs.clean, ablated, qkv)
    return float(loss(metric, logits, pairs, full).mean())


def slow_faithfulness(
    vit: cv.ViT,
    kept: Iterable[str],
    pairs: cv.Pairs,
    metric: str,
    ablation: str,
    reference: Tensor | None = None,
    qkv: str = "split",
) -> float:
    own, none, full = (
        slow_metric(vit, edges, pairs, metric, ablation, reference, qkv)
        for edges in (kept, (), edge_names_of(vit.config, qkv))
    )
    return (own - none) / (full - none)


FOUND = cv.Provenance(method="by hand", ablation="patch")


@dataclass(frozen=True)
class Ranked:
    """Scores by hand: the part of `EdgeScores` that a curve looks at."""

    config: cv.ViTConfig
    values: Mapping[str, float]
    qkv: str = "split"
    provenance: cv.Provenance = FOUND

    def __len__(self) -> int:
        return len(self.values)

    def top(self, n: int, *, signed: bool = False) -> cv.Circuit:
        def key(name):
            return -self.values[name] if signed else -abs(self.values[name])

        best = sorted(self.values, key=key)[:n]
        return cv.Circuit(self.config, best, qkv=self.qkv, provenance=self.provenance)


def random_scores(vit: cv.ViT, *, qkv: str = "split", **provenance) -> Ranked:
    names = edge_names_of(vit.config, qkv)
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(len(names), generator=generator, dtype=torch.float64).tolist()
    found = cv.Provenance(**{"method": "by hand", "ablation": "patch", **provenance})
    return Ranked(vit.config, dict(zip(names, values, strict=True)), qkv, found)
