"""Pass: ranks units by worth, the loss that a unit's removal adds ÷ the cost that it saves.

The loss is the unit's node score in the circuit, or else its effect on the reference: the KL of
the logits to the dense model's that is added when the unit writes its ablated value. The unit of
least worth is dropped first; then the savings of the others are computed again.

Effects are measured once, and in a second ranking again after each quarter of the units. Neither is
always better (`experiments/budgets.py`), so the ranking is taken whose model has the smaller KL on
other images of the reference.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from circuitvit.compiler.validating import sample_images
from circuitvit.discover.task import discovery_task
from circuitvit.errors import warn
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.controls import CostOfUnits, Units, units_within
from circuitvit.graph.edge_graph import units_of
from circuitvit.images import Pairs
from circuitvit.intervene.circuit_runs import logits_without
from circuitvit.intervene.task import PatchingTask
from circuitvit.models.vit import ViT
from circuitvit.progress import progress

EFFECT_IMAGES = 64
"""Largest number of reference images for the effects."""
DECISION_IMAGES = 256
"""Largest number of other reference images, which decide between two rankings."""
SCANS = 4
"""Largest number of times that the effects of all remaining units are measured."""


def ranked_units(
    vit: ViT,
    circuit: Circuit,
    cost: CostOfUnits,
    most: float,
    *,
    ablation: Ablation,
    reference: Tensor | None,
) -> Units:
    """The circuit's units, best first.

    Args:
        vit: the whole model.
        circuit: its units are ranked; scores of edges are not used.
        cost: the cost of a model with only some units.
        most: the largest cost; effects are measured again until it is met.
        ablation: what removed units write.
        reference: images for the effects and for `mean`; without any, 8 seeded normal images.
    """
    units = circuit.units()
    if _is_random(circuit):
        return _random_order(circuit, units)
    if not measures_effects(circuit):
        return by_worth({unit: circuit.scores[unit] for unit in units}, cost)

    task = effects_task(vit, ablation, reference)
    effects = {units: node_effects(task, units)}

    def measure(left: Units) -> Mapping[str, float]:
        if left not in effects:
            effects[left] = node_effects(task, left)
        return effects[left]

    orders = by_worth(measure(units), cost), by_measured_worth(units, measure, cost, most)
    kept = [units_within(vit.config, order, cost, most) for order in orders]
    if kept[0] == kept[1]:
        return orders[0]
    apart = effects_task(vit, ablation, reference, apart=True)
    losses = _losses(apart, kept)
    return orders[0] if losses[0] <= losses[1] else orders[1]


def _is_random(circuit: Circuit) -> bool:
    """Whether a circuit, or every part of a combination, was drawn at random."""
    return circuit.provenance.methods == {"random"}


def measures_effects(circuit: Circuit) -> bool:
    """Whether a circuit's units are ranked by effects on images.

    Otherwise they are ranked by their scores, or at random. Scores of which some are random aren't
    used.
    """
    scored = all(unit in circuit.scores for unit in circuit.units())
    partly_random = "random" in circuit.provenance.methods
    return not _is_random(circuit) and (partly_random or not scored)


def warn_of_other_ablation(circuit: Circuit, ablation: Ablation) -> None:
    """Warn where units are ranked by node scores of another ablation than the compiled model's."""
    known = circuit.provenance.known("ablation")
    by_scores = not (_is_random(circuit) or measures_effects(circuit))
    if by_scores and set(known) - {ablation, "patch"}:  # patch can't be compiled
        warn(
            f"units are ranked by node scores found under {', '.join(known)}, while the compiled "
            f"model is ablated by {ablation!r}. Circuit.full(vit.config) with reference=images "
            "ranks them by effects measured under that, which does better."
        )


def _random_order(circuit: Circuit, units: Units) -> Units:
    """The order of random node scores, or for other random circuits a seeded random order.

    The seed is the circuit's own with the number of the draw, or else its edges and scores. The
    order depends neither on costs nor on how many edges leave a unit, so all are equally likely.
    """
    everything = list(units_of(circuit.config))
    origin = circuit.provenance
    seed = repr((origin.seed, origin.selection))
    if origin.seed is None:  # a combination of several
        seed = repr((circuit.edges, list(circuit.scores.values())))
    random.Random(seed).shuffle(everything)
    order = tuple(unit for unit in everything if unit in set(units))
    if all(unit in circuit.scores for unit in units):  # averaged ranks have many ties
        return tuple(sorted(order, key=lambda unit: -abs(circuit.scores[unit])))
    return order


def by_worth(effects: Mapping[str, float], cost: CostOfUnits) -> Units:
    """Units by effect ÷ saving, best first; ties are broken by the pinned order.

    A unit whose removal saves nothing is dropped last, or first if its effect is negative. Heads of
    one block save the same, since a cost depends on shapes alone.
    """
    left, dropped = list(effects), list[str]()
    while left:
        now, saved = cost(left), dict[str, float]()
        for unit in left:
            if _layer(unit) not in saved:
                saved[_layer(unit)] = now - cost([other for other in left if other != unit])
        worths = {unit: _worth(effects[unit], saved[_layer(unit)]) for unit in left}
        worst = min(left, key=worths.__getitem__)
        left.remove(worst)
        dropped.append(worst)
    return tuple(reversed(dropped))


def _layer(unit: str) -> str:
    return unit.partition(".")[0]


def _worth(effect: float, saved: float) -> float:
    return effect / saved if saved > 0 else math.copysign(math.inf, effect)


def by_measured_worth(
    units: Units, measure: Callable[[Units], Mapping[str, float]], cost: CostOfUnits, most: float
) -> Units:
    """Units by worth, best first, with effects measured again after each dropped quarter.

    Args:
        units: in forward order.
        measure: the effects of the remaining units.
        cost: the cost of some units.
        most: the largest cost; below it, effects aren't measured again.
    """
    every, gone = math.ceil(len(units) / SCANS), Units()
    left = units
    while left:
        order = by_worth(measure(left), cost)
        gone, kept = (*order[-every:], *gone), set(order[:-every])
        left = tuple(unit for unit in units if unit in kept)
        if cost(left) <= most:
            return (*order[:-every], *gone)
    return gone


def effects_task(
    vit: ViT, ablation: Ablation, reference: Tensor | None, *, apart: bool = False
) -> PatchingTask:
    """KL to the dense model on some images of the reference, spread evenly over it.

    Args:
        vit: the dense model.
        ablation: what removed units write.
        reference: the images; without any, 8 seeded normal images.
        apart: take other images than otherwise, if there are more than `EFFECT_IMAGES`.
    """
    images = sample_images(vit) if reference is None or not len(reference) else reference
    places = _spread(len(images), EFFECT_IMAGES)
    if apart and len(images) > len(places):
        others = sorted(set(range(len(images))) - set(places))
        places = [others[place] for place in _spread(len(others), DECISION_IMAGES)]
    return discovery_task(
        vit, Pairs(clean=images[torch.tensor(places, device=images.device)]), metric="kl",
        ablation=ablation, level="node", reference=reference,
    )  # fmt: skip


def _spread(count: int, most: int) -> list[int]:
    """Evenly spread places in a row, at most this number of them."""
    return [int(place) for place in torch.linspace(0, count - 1, min(most, count)).round()]


def node_effects(task: PatchingTask, units: Units) -> dict[str, float]:
    """The loss that removing each of some units adds; units not among them stay removed."""
    without_each = [[unit for unit in units if unit != other] for other in units]
    runs = len(units) + 2
    with progress("node effects", runs * len(task.pairs)) as advance:
        start, *others = _losses(task, [units, *without_each], advance)
    return {unit: loss - start for unit, loss in zip(units, others, strict=True)}


@torch.no_grad()
def _losses(
    task: PatchingTask,
    kept: Iterable[Iterable[str]],
    advance: Callable[..., None] = lambda steps: None,
) -> list[float]:
    """The loss with each of several sets of units alone."""
    every = set(units_of(task.vit.config))
    removed = [set[str](), *(every - set(units) for units in kept)]
    full, *others = logits_without(task, removed, advance=advance)
    return [task.mean_loss(logits, full) for logits in others]
