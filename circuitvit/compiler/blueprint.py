"""Pass: which units and neurons stay, given a circuit, neuron scores and a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from circuitvit.circuit import Circuit
from circuitvit.compiler.budget import budget_of, ranked_units, within_budget
from circuitvit.compiler.check import Options
from circuitvit.compiler.neurons import Kept, kept_neurons
from circuitvit.config import ViTConfig
from circuitvit.measure.cost_table import measure_costs
from circuitvit.vit import ViT

BATCH = 64
"""Images at once, where a latency budget comes without a table of costs."""


@dataclass(frozen=True)
class Blueprint:
    """What stays of a model.

    Attributes:
        units: heads and MLPs, in forward order.
        neurons: the neurons of the MLPs that lose some, by block.
    """

    units: tuple[str, ...]
    neurons: Kept


def blueprint_of(
    vit: ViT, circuit: Circuit, options: Options, shape: Callable[[Blueprint], ViTConfig]
) -> Blueprint:
    """The circuit's units, or the best of them that meet the budget, with their best neurons.

    Args:
        vit: the whole model.
        circuit: its circuit.
        options: checked.
        shape: what a blueprint is compiled to.

    Raises:
        CircuitError: the budget can't be met, or the costs don't cover it.
    """

    def having(units: tuple[str, ...]) -> Blueprint:
        if options.neurons is None or options.keep_ratio is None:
            return Blueprint(units, {})
        neurons = kept_neurons(options.neurons, units, options.keep_ratio, options.multiple)
        return Blueprint(units, neurons)

    if not any(share is not None for share in options.targets.values()):
        return having(circuit.units())
    ranking = ranked_units(circuit)

    @cache
    def shape_of_first(count: int) -> ViTConfig:
        return shape(having(ranking[:count]))

    costs = options.costs
    if costs is None and options.targets["target_latency"] is not None:
        where, shapes = vit.positions, map(shape_of_first, range(len(ranking) + 1))
        costs = measure_costs(
            vit.config, shapes=shapes, batch=BATCH, device=where.device, dtype=where.dtype
        )
    budget = budget_of(options.targets, costs)
    assert budget is not None
    return having(within_budget(vit.config, ranking, shape_of_first, budget))
