"""Pass: which units and neurons are kept, given a circuit, neuron scores and a budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from circuitvit.compiler.correction import corrected, measured_share
from circuitvit.compiler.passes.neurons import KeptNeurons, kept_neurons
from circuitvit.compiler.ranking import ranked_units, warn_of_other_ablation
from circuitvit.compiler.validating import Options
from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.controls import CostOfUnits, Units, least_model, units_within
from circuitvit.graph.edge_graph import shape_of_units
from circuitvit.measure.models.cost import Costs, measure_costs, vit_macs, vit_parameters
from circuitvit.models.vit import ViT

BATCH = 64
"""Batch size at which a latency budget without a table of costs is timed."""


@dataclass(frozen=True)
class Blueprint:
    """The kept units and neurons of a model.

    Attributes:
        units: heads and MLPs, in forward order.
        neurons: the kept neurons of MLPs that lose some, by block.
    """

    units: tuple[str, ...]
    neurons: KeptNeurons

    def shape(self, config: ViTConfig, ablation: Ablation, *, fresh: bool) -> ViTConfig:
        """The config of the compiled model, without any data.

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
    """The circuit's units, or the best of them within the budget, with their best neurons.

    Args:
        vit: the whole model.
        circuit: its circuit.
        options: checked.
        ablation: what removed units write.
        reference: images for `mean`, and to rank units on that have no score.

    Raises:
        CircuitError: no model meets the budget, or the costs don't cover it.
    """
    blueprint = _with_neurons(options)
    budget = options.budget()
    if budget is None:
        return blueprint(circuit.units())
    target, share = budget
    timed = target == "target_latency" and options.costs is None
    price = cache(_price(target, _costs_here(vit, options) if timed else options.costs))

    def shape(units: Sequence[str]) -> ViTConfig:
        return blueprint(units).shape(vit.config, ablation, fresh=options.fresh)

    def cost(units: Sequence[str]) -> float:
        return float(price(shape(units)))

    whole = float(price(vit.config))
    if not options.fresh:
        warn_of_other_ablation(circuit, ablation)
    order = ranked_units(vit, circuit, cost, share * whole, ablation=ablation, reference=reference)

    def solve(share: float) -> Units:
        return _within_budget(vit.config, order, cost, target, share, whole)

    if not timed:
        return blueprint(solve(share))
    return blueprint(
        corrected(
            share,
            solve,
            lambda units: cost(units) / whole,
            lambda units, timings: measured_share(vit, shape(units), BATCH, timings),
        )
    )


def _with_neurons(options: Options) -> Callable[[Sequence[str]], Blueprint]:
    """From units to their blueprint. The neurons depend on the MLPs alone and are computed once."""
    scores, ratio = options.neurons, options.keep_ratio
    if scores is None or ratio is None:
        return lambda units: Blueprint(tuple(units), {})

    @cache
    def neurons(mlps: tuple[str, ...]) -> KeptNeurons:
        return kept_neurons(scores, mlps, ratio, options.multiple)

    def blueprint(units: Sequence[str]) -> Blueprint:
        mlps = tuple(sorted(unit for unit in units if "." not in unit))
        return Blueprint(tuple(units), neurons(mlps))

    return blueprint


def _price(target: str, costs: Costs | None) -> Callable[[ViTConfig], float]:
    """The cost of a shape that a target is about; of latency by a table of costs."""
    if costs is not None:
        return costs.predict
    return vit_macs if target == "target_macs" else vit_parameters


def _costs_here(vit: ViT, options: Options) -> Costs:
    """A table of costs of the shapes that can be left, measured on the model's device."""
    shapes, config = None, vit.config
    if options.neurons is None:  # MLPs stay whole, so smaller ones aren't timed
        shapes = [config, replace(config, attention_constant=True)]
        for count in range(max(config.heads, default=0)):
            shapes.append(replace(config, heads=tuple(min(count, n) for n in config.heads)))
    where = vit.positions
    return measure_costs(config, shapes=shapes, batch=BATCH, device=where.device, dtype=where.dtype)


def _within_budget(
    dense: ViTConfig, order: Units, cost: CostOfUnits, target: str, share: float, whole: float
) -> Units:
    """The units that fit into a share of the dense model's cost, in forward order.

    Units are tried best first. One that doesn't fit is skipped and the next is tried, so that the
    budget is used up.

    Raises:
        CircuitError: no unit fits; no head, where the class token alone is read.
    """
    if not whole > 0:
        raise CircuitError(f"the dense model costs {whole:zg}, so no share of that can be met.")
    kept = units_within(dense, order, cost, share * whole)
    if order and not kept:
        least, left = least_model(dense, order, cost)
        # Rounded up, so that the share in the message is enough.
        enough = math.ceil(least / whole * 1e4 - 1e-9) / 1e4
        raise CircuitError(
            f"{target}={share:zg} leaves no model that reads images: the least share of the dense "
            f"model's cost is {enough:z.4f}, with {' '.join(left)} alone, since what belongs to no "
            "unit stays. Ask for more."
        )
    return kept
