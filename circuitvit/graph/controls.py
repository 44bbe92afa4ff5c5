"""Random controls: units of the same cost, or as many edges, drawn at random.

Circuits drawn edge by edge are in pieces while they hold few of the edges: nothing leads from the
image to the logits, and their faithfulness is 0 whatever the model does. Connected ones are the
fair control. Units drawn at random keep all edges among them, read the images, and reach `logits`.
"""

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, in_short
from circuitvit.graph.circuit import Circuit, Provenance
from circuitvit.graph.edge_graph import (
    Edge,
    Qkv,
    edge_count,
    edges_of,
    node_named,
    shape_of_units,
    units_of,
)

Units = tuple[str, ...]
CostOfUnits = Callable[[Sequence[str]], float]
"""What a model with only some units costs."""

PATIENCE = 200
"""So many draws in a row without a new set end the drawing."""
DIRECT = "embed->logits"


def random_units(
    config: ViTConfig,
    price: Callable[[ViTConfig], float],
    most: float,
    *,
    count: int = 15,
    seed: int = 0,
    constants: bool = False,
) -> tuple[Units, ...]:
    """Sets of heads and MLPs drawn at random that cost as much as is allowed.

    Units come in an order in which every one is equally likely; each is kept if it fits beside
    those before it. The sets differ; where fewer than `count` are possible, there are fewer.

    Args:
        config: the whole model's shape.
        price: the cost of a shape, such as `costs.predict` or `vit_macs`.
        most: what the units may cost, in the unit of `price`.
        count: how many sets, ≥ 0.
        seed: draws the orders.
        constants: whether removed units write constants, as under `mean`, which cost something.

    Returns:
        The sets, each in forward order.

    Raises:
        CircuitError: a number is out of range, or nothing fits (the least cost is named).
    """
    most, count, seed = real(most, "most"), whole(count, "count"), whole(seed, "seed")
    if not callable(price):
        raise CircuitError(
            f"price is {in_short(price)}, expected a function from a config to its cost, such as "
            "costs.predict."
        )
    if count < 0 or seed < 0 or math.isnan(most):
        raise CircuitError(
            f"most is {most:zg}, count {count} and seed {seed}, expected a cost, ≥ 0 sets and a "
            "seed ≥ 0."
        )

    @cache
    def known(units: frozenset[str]) -> float:
        return float(price(shape_of_units(config, units, constants=constants)))

    def cost(units: Sequence[str]) -> float:
        return known(frozenset(units))

    generator, units = random.Random(seed), list(units_of(config))
    drawn: dict[Units, None] = {}
    idle = 0
    while len(drawn) < count and idle < PATIENCE:
        generator.shuffle(units)
        chosen = units_within(config, units, cost, most)
        if not chosen:
            least, left = least_model(config, units_of(config), cost)
            raise CircuitError(
                f"most is {most:zg}, but a model that reads images costs {least:zg} at least (with "
                f"{' '.join(left) or 'no unit'}). Ask for that or more."
            )
        idle = idle + 1 if chosen in drawn else 0
        drawn[chosen] = None
    return tuple(drawn)


def units_within(config: ViTConfig, order: Sequence[str], cost: CostOfUnits, most: float) -> Units:
    """The units that fit into a cost, best first; in forward order.

    A unit that doesn't fit beside those before it is skipped, and the next is tried. If what fits
    does not read the images, the best start that does comes first. Nothing, if none fits.
    """
    if cost(order) <= most:
        inside = set(order)
    else:
        inside = _from((), order, cost, most)
        if not _suffices(config, inside, order):
            starts = (start for start in _starts(config, order) if cost(start) <= most)
            inside = _from(next(starts, ()), order, cost, most)
        if not _suffices(config, inside, order):
            return ()
    return tuple(unit for unit in units_of(config) if unit in inside)


def _from(start: Iterable[str], order: Sequence[str], cost: CostOfUnits, most: float) -> set[str]:
    """A start, and what still fits; anew as long as anything does, since a constant may go."""
    kept, before = list(start), -1
    while before < len(kept):
        before = len(kept)
        for unit in order:
            if unit not in kept and cost([*kept, unit]) <= most:
                kept.append(unit)
    return set(kept)


def _suffices(config: ViTConfig, units: Collection[str], order: Sequence[str]) -> bool:
    """Whether some units of an order make a model that tells images apart, as far as all do.

    Where the class token alone is read, that takes a head: it brings the patches there.
    """
    heads = any("." in unit for unit in order)
    needs_head = heads and config.pooling in ("class", "class_distillation")
    return any("." in unit for unit in units) if needs_head else bool(units)


def _starts(config: ViTConfig, order: Sequence[str]) -> Iterator[Units]:
    """The least models that suffice, best first: a unit, or all heads of a block.

    A whole attention writes no constant for removed heads, so it may cost less than a part.
    """
    for unit in order:
        if _suffices(config, (unit,), order):
            yield (unit,)
    for block in dict.fromkeys(unit.partition(".")[0] for unit in order if "." in unit):
        yield tuple(unit for unit in order if unit.startswith(f"{block}."))


def least_model(config: ViTConfig, order: Sequence[str], cost: CostOfUnits) -> tuple[float, Units]:
    """The cost of the cheapest model of `units_within`, and its units; infinity without any."""
    priced = [(cost(start), start) for start in _starts(config, order)]
    return min(priced, key=lambda pair: pair[0], default=(math.inf, ()))


def random_edges(
    config: ViTConfig,
    size: int,
    *,
    qkv: Qkv = "split",
    connected: bool = True,
    count: int = 15,
    seed: int = 0,
) -> tuple[Circuit, ...]:
    """Random circuits of exactly so many edges.

    Not connected: every set of `size` edges is equally likely. Connected: every edge lies on a path
    from `embed` to `logits`, so none dangles under any ablation. The circuit grows from nothing: an
    edge is drawn evenly from those that it lacks, and with it, where no path leads to the edge's
    writer, an edge into the writer from a writer drawn evenly from those that have a path, and
    where none leads on from its reader, an edge out of it likewise; an edge that would bring more
    than are still to come is passed over. So circuits spread over all blocks as the edges do, and
    are not uniform over all connected circuits. The only connected circuit of one edge is
    `embed->logits`.

    Args:
        config: the shape of the ViT, `vit.config`.
        size: how many edges, 0 to all.
        qkv: granularity of the heads' readers.
        connected: whether every edge must lie on a path.
        count: how many circuits; small ones may be alike.
        seed: draws them.

    Raises:
        CircuitError: there are not so many edges, or a number is none.
    """
    families = random_families(config, [size], qkv=qkv, connected=connected, count=count, seed=seed)
    return tuple(circuits[0] for circuits in families)


def random_families(
    config: ViTConfig,
    sizes: Sequence[int],
    *,
    qkv: Qkv = "split",
    connected: bool,
    count: int,
    seed: int,
) -> tuple[tuple[Circuit, ...], ...]:
    """For each draw a circuit of each size, of which larger ones hold the smaller ones.

    A connected circuit can't always be part of one that has a single edge more; then the larger one
    is drawn anew.

    Args:
        config: the shape of the ViT.
        sizes: how many edges, in any order.
        qkv: granularity of the heads' readers.
        connected: whether every edge must lie on a path from `embed` to `logits`.
        count: how many draws.
        seed: draws them; draw d is the same for any count.

    Raises:
        CircuitError: there are not so many edges, or a number is none.
    """
    total, draws, start = edge_count(config, qkv), whole(count, "count"), whole(seed, "seed")
    known = [whole(size, "size") for size in sizes]
    if draws < 0 or start < 0 or any(not 0 <= size <= total for size in known):
        raise CircuitError(
            f"size is {', '.join(map(str, known))}, count {draws} and seed {start}, expected 0 to "
            f"{total} edges, ≥ 0 circuits and a seed ≥ 0."
        )
    edges = edges_of(config, qkv)
    families = []
    for draw in range(draws):
        generator = np.random.default_rng([start, draw])
        order = [edges[place] for place in generator.permutation(total)]
        grown: dict[int, Sequence[Edge]] = {size: order[:size] for size in known}
        if connected:
            grown = _connected(edges, order, sorted(set(known)), generator)
        kind = "connected" if connected else "any"
        families.append(
            tuple(
                Circuit(
                    config,
                    [edge.name for edge in grown[size]],
                    qkv=qkv,
                    provenance=Provenance(
                        method="random", selection=f"{size} edges, {kind}, draw {draw}", seed=start
                    ),
                )
                for size in known
            )
        )
    return tuple(families)


def _connected(
    edges: Sequence[Edge],
    order: Sequence[Edge],
    sizes: Sequence[int],
    generator: np.random.Generator,
) -> dict[int, Sequence[Edge]]:
    """Connected circuits of ascending sizes, by size."""
    growth, grown = _Growth(edges, order, generator), dict[int, Sequence[Edge]]()
    for size in sizes:
        if not growth.reach(size):
            growth = _Growth(edges, order, generator)
            assert growth.reach(size), f"no connected circuit of {size} edges was found"
        grown[size] = tuple(growth.kept.values())
    return grown


class _Growth:
    """A connected circuit that grows to given sizes.

    Attributes:
        kept: its edges, by name.
    """

    def __init__(
        self, edges: Sequence[Edge], order: Sequence[Edge], generator: np.random.Generator
    ) -> None:
        self.kept: dict[str, Edge] = {}
        self._order, self._generator = order, generator
        self._on_path = {"embed", "logits"}
        self._into: dict[str, list[Edge]] = {}
        self._out: dict[str, list[Edge]] = {}
        for edge in edges:
            self._into.setdefault(_unit(edge), []).append(edge)
            self._out.setdefault(edge.writer, []).append(edge)

    def reach(self, size: int) -> bool:
        """Grow to so many edges; False if that can't be done by adding edges."""
        before, refused = set(self.kept), set[str]()
        while len(self.kept) < size:
            if self._pass(size, refused):
                continue
            # All edges among its units are there, one is to come, and another unit takes two.
            if DIRECT not in self.kept or DIRECT in before:
                return False
            del self.kept[DIRECT]
            refused.add(DIRECT)
        return True

    def _pass(self, size: int, refused: set[str]) -> bool:
        """Go through the edges once and add those that fit; whether any did."""
        start = len(self.kept)
        for edge in self._order:
            if len(self.kept) == size:
                break
            ends = {edge.writer, _unit(edge)} - self._on_path
            fits = len(self.kept) + 1 + len(ends) <= size
            if fits and edge.name not in self.kept and edge.name not in refused:
                self._add(edge)
        return len(self.kept) > start

    def _add(self, edge: Edge) -> None:
        """Add an edge with one into its writer and one out of its reader, where none is there."""
        writer, reader = edge.writer, _unit(edge)
        brought = [edge]
        if writer not in self._on_path:
            brought.append(
                self._drawn([e for e in self._into[writer] if e.writer in self._on_path])
            )
        if reader not in self._on_path:
            brought.append(self._drawn([e for e in self._out[reader] if _unit(e) in self._on_path]))
        self._on_path |= {writer, reader}
        self.kept |= {each.name: each for each in brought}

    def _drawn(self, candidates: Sequence[Edge]) -> Edge:
        return candidates[int(self._generator.integers(len(candidates)))]


def _unit(edge: Edge) -> str:
    """The unit that an edge leads to."""
    return node_named(edge.reader).unit
