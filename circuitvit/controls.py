"""Random controls: what chance gives at the same cost.

A control is connected, so that it is no straw man: its units keep all edges among them, read the
images, and reach `logits`.
"""

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache

from circuitvit.checks import real, whole
from circuitvit.config import ViTConfig
from circuitvit.edge_graph import shape_of_units, units_of
from circuitvit.errors import CircuitError

Units = tuple[str, ...]
Cost = Callable[[Sequence[str]], float]
"""What a model with only some units costs."""

PATIENCE = 200
"""So many draws in a row without a new set end the drawing."""


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
        count: how many sets, ≥ 1.
        seed: draws the orders.
        constants: whether removed units write constants, as under `mean`, which cost something.

    Returns:
        The sets, each in forward order.

    Raises:
        CircuitError: a number is out of range, or nothing fits (the least cost is named).
    """
    most, count, seed = real(most, "most"), whole(count, "count"), whole(seed, "seed")
    if count < 1:
        raise CircuitError(f"count is {count}, expected ≥ 1.")

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
        chosen = filled(config, units, cost, most)
        if not chosen:
            least, left = least_model(config, units_of(config), cost)
            raise CircuitError(
                f"most is {most:zg}, but a model that reads images costs {least:zg} at least (with "
                f"{' '.join(left) or 'no unit'}). Ask for that or more."
            )
        idle = idle + 1 if chosen in drawn else 0
        drawn[chosen] = None
    return tuple(drawn)


def filled(config: ViTConfig, order: Sequence[str], cost: Cost, most: float) -> Units:
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


def _from(start: Iterable[str], order: Sequence[str], cost: Cost, most: float) -> set[str]:
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


def least_model(config: ViTConfig, order: Sequence[str], cost: Cost) -> tuple[float, Units]:
    """What the cheapest model of `filled` costs, and its units; infinity where there is none."""
    priced = [(cost(start), start) for start in _starts(config, order)]
    return min(priced, key=lambda pair: pair[0], default=(math.inf, ()))
