"""Pass: which units and neurons stay, given a circuit, neuron scores and a budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from circuitvit.compiler.correction import corrected, measured_share
from circuitvit.compiler.passes.neurons import KeptNeurons, kept_neurons
from circuitvit.compiler.ranking import ranked_units, warn_of_other_ablation
from circuitvit.compiler.validating import Options, Targets
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.controls import Cost, Units, least_model, units_within
from circuitvit.graph.edge_graph import shape_of_units
from circuitvit.measure.models.cost import vit_macs, vit_parameters
from circuitvit.measure.models.cost_table import Costs, measure_costs
from circuitvit.models.vit import ViT

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
    neurons: KeptNeurons

    def shape(self, config: ViTConfig, ablation: Ablation, *, fresh: bool) -> ViTConfig:
        """What it is compiled to, without any data.

        Args:
            config: the whole model's shape.
            ablation: what removed units and neurons write.
            fresh: whether the weights are new; then there are no constants.
        """
        constants = ablation == "mean" and not fresh
        left = shape_of_units(config, self.units, constants=constants)
        widths = (len(self.neurons.get(b, range(n))) for b, n in enumerate(left.mlp_width))
        left = replace(left, mlp_width=tuple(widths))
        if fresh:
            return replace(left, attention_constant=False, mlp_constant=False)
        held = (had or (constants and b in self.neurons) for b, had in enumerate(left.mlp_constant))
        return replace(left, mlp_constant=tuple(held))


def blueprint_of(
    vit: ViT, circuit: Circuit, options: Options, *, ablation: Ablation, reference: Tensor | None
) -> Blueprint:
    """The circuit's units, or the best of them that meet the budget, with their best neurons.

    Args:
        vit: the whole model.
        circuit: its circuit.
        options: checked.
        ablation: what removed units write.
        reference: images for `mean`, and to rank units on that have no score.

    Raises:
        CircuitError: the budget can't be met, or the costs don't cover it.
    """
    having = _having(options)

    def shape(units: Sequence[str]) -> ViTConfig:
        return having(units).shape(vit.config, ablation, fresh=options.fresh)

    if not any(share is not None for share in options.targets.values()):
        return having(circuit.units())
    measured = options.costs is None and options.targets["target_latency"] is not None
    budget = budget_of(options.targets, _costs_here(vit, options) if measured else options.costs)
    assert budget is not None
    price = cache(budget.price)

    def cost(units: Sequence[str]) -> float:
        return float(price(shape(units)))

    whole = price(vit.config)
    most = budget.share * whole
    if not options.fresh:
        warn_of_other_ablation(circuit, ablation)
    order = ranked_units(vit, circuit, cost, most, ablation=ablation, reference=reference)

    def solve(share: float) -> tuple[str, ...]:
        return within_budget(vit.config, order, cost, replace(budget, share=share))

    if not measured:
        return having(solve(budget.share))
    return having(
        corrected(
            budget.share,
            solve,
            lambda units: cost(units) / whole,
            lambda units, timings: measured_share(vit, shape(units), BATCH, timings),
        )
    )


def _having(options: Options) -> Callable[[Sequence[str]], Blueprint]:
    """What gives units the neurons that they keep, which depend on the MLPs alone."""

    @cache
    def neurons(mlps: tuple[str, ...]) -> KeptNeurons:
        assert options.neurons is not None
        assert options.keep_ratio is not None
        return kept_neurons(options.neurons, mlps, options.keep_ratio, options.multiple)

    def having(units: Sequence[str]) -> Blueprint:
        mlps = tuple(sorted(unit for unit in units if "." not in unit))
        return Blueprint(tuple(units), {} if options.neurons is None else neurons(mlps))

    return having


def _costs_here(vit: ViT, options: Options) -> Costs:
    """A table of what can be left of a model, measured where it is."""
    shapes, config = None, vit.config
    if options.neurons is None:  # no MLP is left with fewer neurons, so none such is timed
        shapes = [config, replace(config, attention_constant=True)]
        for count in range(max(config.heads, default=0)):
            shapes.append(replace(config, heads=tuple(min(count, n) for n in config.heads)))
    where = vit.positions
    return measure_costs(config, shapes=shapes, batch=BATCH, device=where.device, dtype=where.dtype)


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
