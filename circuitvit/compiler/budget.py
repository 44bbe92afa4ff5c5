"""Pass: the units that a budget pays for, and why a budget can't be kept.

Units come best first; one that no longer fits is skipped and the next is tried, so that the budget
is filled.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from circuitvit.checks import real
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.controls import Cost, Units, least_model, units_within
from circuitvit.measure.models.cost import vit_macs, vit_parameters
from circuitvit.measure.models.cost_table import Costs

Targets = Mapping[str, float | None]
"""Shares of the dense model's cost, by `target_latency`, `target_macs` and `target_parameters`."""


@dataclass(frozen=True)
class Budget:
    """What a model may cost.

    Attributes:
        target: which cost is meant, such as `target_macs`.
        share: of the dense model's, above 0 and at most 1.
        price: the cost of a shape.
    """

    target: str
    share: float
    price: Callable[[ViTConfig], float]


def budget_of(targets: Targets, costs: Costs | None) -> Budget | None:
    """The budget that was asked for, if any; of latency by a table of costs."""
    for target, share in targets.items():
        if share is not None:
            if target == "target_latency":
                assert costs is not None
                return Budget(target, float(share), costs.predict)
            price = vit_macs if target == "target_macs" else vit_parameters
            return Budget(target, float(share), price)
    return None


def within_budget(dense: ViTConfig, order: Units, cost: Cost, budget: Budget) -> Units:
    """The units that a budget pays for, best first; in forward order.

    Args:
        dense: the shape of the whole model.
        order: units, best first.
        cost: what a model with only some units costs.
        budget: what it may cost.

    Raises:
        CircuitError: it pays for no unit; for no head where the class token alone is read.
    """
    whole = budget.price(dense)
    if not whole > 0:
        raise CircuitError(f"the dense model costs {whole:zg}, so no share of that can be met.")
    kept = units_within(dense, order, cost, budget.share * whole)
    if order and not kept:
        least, left = least_model(dense, order, cost)
        raise CircuitError(
            f"{budget.target}={budget.share:zg} leaves no model that reads images: the least share "
            f"of the dense model's cost is {rounded_up(least / whole):z.4f}, with {' '.join(left)} "
            "alone, since what belongs to no unit stays. Ask for more."
        )
    return kept


def rounded_up(share: float) -> float:
    """A share in ten-thousandths, no smaller than it is, so that it can be asked for."""
    return math.ceil(share * 1e4 - 1e-9) / 1e4


def budget_reasons(
    config: ViTConfig, circuit: object, targets: Targets, costs: object
) -> Iterator[str]:
    """Why such a budget can't be kept."""
    given = {name: share for name, share in targets.items() if share is not None}
    if len(given) > 1:
        yield f"{' and '.join(given)} are given, expected one budget at most"
    for name, share in given.items():
        try:
            if not 0 < real(share, name) <= 1:
                yield f"{name} is {share}, expected a share above 0 and at most 1"
        except CircuitError as cause:
            yield str(cause).rstrip(".")
    if given and isinstance(circuit, Circuit) and not circuit.units():
        yield f"{' and '.join(given)} drop units, but this circuit has none on a kept path"
    if costs is not None:
        yield from _cost_reasons(config, costs, given)


def _cost_reasons(config: ViTConfig, costs: object, given: Mapping[str, object]) -> Iterator[str]:
    if "target_latency" not in given:
        yield "costs go with target_latency only"
    if not isinstance(costs, Costs):
        yield f"costs are a {type(costs).__name__}, expected what cv.measure_costs(config) gives"
    elif costs.differing(config):
        yield (
            f"the costs were measured for a ViT with another {', '.join(costs.differing(config))}; "
            "use cv.measure_costs(vit.config)"
        )
