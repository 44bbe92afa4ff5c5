"""Pass: the best-scored units of a circuit whose predicted cost is within a budget.

Units are ranked by what leaves them: the sum of |score| over their kept out-edges, ties in the
pinned order. The worst are dropped, one after another, until the model is cheap enough: what stays
is the longest run of the ranking from its top that meets the budget.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from circuitvit.checks import real
from circuitvit.circuit import Circuit
from circuitvit.config import ViTConfig
from circuitvit.edge_graph import units_of
from circuitvit.errors import CircuitError
from circuitvit.measure.cost import vit_macs, vit_parameters
from circuitvit.measure.cost_table import Costs

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


def within_budget(
    dense: ViTConfig, ranking: Sequence[str], shape: Callable[[int], ViTConfig], budget: Budget
) -> tuple[str, ...]:
    """The longest run of a ranking, from its top, that meets a budget; in forward order.

    Args:
        dense: the shape of the whole model.
        ranking: units, best first.
        shape: what is left of the model with so many of them, from the first.
        budget: what it may cost.

    Raises:
        CircuitError: no run meets it, not even that of no unit.
    """
    whole = budget.price(dense)
    if not whole > 0:
        raise CircuitError(f"the dense model costs {whole:zg}, so no share of that can be met.")
    least = math.inf
    for count in reversed(range(len(ranking) + 1)):
        share = budget.price(shape(count)) / whole
        least = min(share, least)
        if share <= budget.share:
            kept = set(ranking[:count])
            return tuple(unit for unit in units_of(dense) if unit in kept)
    raise CircuitError(
        f"{budget.target}={budget.share:zg} can't be met: the least share of the dense model's "
        f"cost that dropping units reaches is {least:z.4f}, since what belongs to no unit stays. "
        "Ask for that or more."
    )


def ranked_units(circuit: Circuit) -> tuple[str, ...]:
    """The units on a kept path, best first by the sum of |score| of the kept edges leaving them.

    Raises:
        CircuitError: a kept edge that leaves one has no score.
    """
    leaving: dict[str, list[float]] = {unit: [] for unit in circuit.units()}
    for edge in circuit.edges:
        writer = edge.split("->")[0]
        if writer in leaving:
            if edge not in circuit.scores:
                raise CircuitError(
                    f"a budget drops the units that score least, but this circuit has no score for "
                    f"{edge}. Choose a circuit from cv.eap(..., level='edge'), or give its edges "
                    "scores: Circuit(config, edges, scores=scores)."
                )
            leaving[writer].append(abs(circuit.scores[edge]))
    pinned = [unit for unit in reversed(units_of(circuit.config)) if unit in leaving]
    return tuple(sorted(pinned, key=lambda unit: -math.fsum(leaving[unit])))


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
    if costs is not None:
        yield from _cost_reasons(config, costs, given)
    if given and isinstance(circuit, Circuit):
        try:
            ranked_units(circuit)
        except CircuitError as cause:
            yield str(cause).rstrip(".")


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
