"""Searches whose decisions and predictions are drawn, each of whose trials can be looked at."""

from collections.abc import Callable

import torch
from torch import Tensor

import circuitvit as cv
from circuitvit.discover.acdc.engine.circuit_state import Speedups, has_reader
from circuitvit.discover.acdc.engine.incremental import IncrementalRun
from circuitvit.graph.edge_graph import places_of, readers_of, units_of, writers_before, writers_of
from circuitvit.intervene.writer_outputs import ablated_writes

Looked = Callable[[set[str], Tensor], None]


def unit_of(reader: str) -> str:
    return reader[:-2] if reader[-2:] in (".q", ".k", ".v") else reader


def full_circuit(config: cv.ViTConfig) -> dict[str, set[int]]:
    """By reader, the places of all writers before it."""
    before = writers_before(config)
    return {name: set(range(before[unit_of(name)])) for name in readers_of(config)}


def names_of(config: cv.ViTConfig, kept: dict[str, set[int]]) -> set[str]:
    writers = writers_of(config)
    return {f"{writers[place]}->{reader}" for reader, places in kept.items() for place in places}


def readers_together(unit: str, qkv: str) -> list[tuple[str, ...]]:
    """The readers of a unit, in groups that are tried together."""
    if not unit.startswith("a"):
        return [(unit,)]
    parts = tuple(f"{unit}.{part}" for part in "vkq")
    return [parts] if qkv == "joint" else [(part,) for part in parts]


class Walk:
    """One such search.

    Args:
        kept: the edges to start from, if not all.
        share: how many of the removals are accepted.
        predicted: how many are predicted to be refused.
    """

    def __init__(
        self, vit, pairs, ablation, *, reference=None, kept=None, seed=0, share=0.7, predicted=0.3,
        **speedups,
    ):  # fmt: skip
        self.vit, self.kept = vit, kept or full_circuit(vit.config)
        self.share, self.predicted, self.removed = share, predicted, 0
        self._draw = torch.Generator().manual_seed(seed)
        ablated = ablated_writes(vit, ablation, corrupt=pairs.corrupt, reference=reference)
        options = Speedups(**speedups)
        self.run = IncrementalRun(vit, pairs.clean, ablated, self.kept, speedups=options)

    def yes(self, share: float) -> bool:
        return bool(torch.rand((), generator=self._draw) < share)

    def go(self, looked: Looked, *, qkv: str = "split", moments: int = 1) -> None:
        """Try every edge; `looked` gets the edges of each trial, and its logits."""
        places = places_of(self.vit.config)
        for unit in ("logits", *reversed(units_of(self.vit.config))):
            if unit != "logits" and not has_reader(self.kept, places[unit]):
                for reader in (name for group in readers_together(unit, qkv) for name in group):
                    self.kept[reader].clear()
                continue
            self.run.open(unit)
            for readers in readers_together(unit, qkv):
                order = sorted(self.kept[readers[0]], reverse=True)
                self.run.begin(readers, order)
                first = 0
                while first < len(order):
                    first += self._some(readers, order, first, moments, looked)

    def _some(self, readers, order, first, moments, looked) -> int:
        asked = order[first : first + moments]
        keeps = {place for place in asked if self.yes(self.predicted)}
        trial = self.run.try_removals(first, len(asked), keeps)
        for index, place in enumerate(asked):
            gone = {p for p in asked[:index] if p not in keeps} | {place}
            without = {r: s - gone if r in readers else s for r, s in self.kept.items()}
            looked(names_of(self.vit.config, without), trial.logits[index])
        return self._settle(readers, asked, keeps, trial)

    def _settle(self, readers, asked, keeps, trial) -> int:
        """Decide up to the first that was not predicted."""
        removed, kept, count = None, [], 0
        for index, place in enumerate(asked):
            goes, count = self.yes(self.share), count + 1
            if goes:
                removed, self.removed = index, self.removed + 1
                for reader in readers:
                    self.kept[reader].discard(place)
            else:
                kept.append(place)
            if goes == (place in keeps):
                break
        for place in kept:
            self.run.keep(place)
        if removed is not None:
            self.run.commit(trial, removed)
        return count
