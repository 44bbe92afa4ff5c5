"""Pass: the order in which units are worth their cost, best first.

A unit is worth what its removal costs in loss for what it saves. The loss comes from the circuit's
own node scores, or else from node effects on the reference: how far the logits move from the dense
model's when the unit, too, writes its ablated value. Units are dropped one after another, the
cheapest loss for its saving first, and what the others save is then counted anew. Effects are
measured once, and also anew after each quarter of the units; neither is always better
(`experiments/budgets.py`), so of the two models the one that is nearer to the dense one on other
images of the reference is taken.
"""

import math
import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from circuitvit.compiler.validating import sample_images
from circuitvit.discover.acdc.acdc import logits_without, mean_loss
from circuitvit.discover.task import Problem
from circuitvit.errors import warn
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.controls import Cost, Units, units_within
from circuitvit.graph.edge_graph import units_of
from circuitvit.images import Pairs
from circuitvit.models.vit import ViT
from circuitvit.progress import progress

IMAGES = 64
"""At most so many images of the reference are looked at for the effects."""
IMAGES_APART = 256
"""At most so many other images of the reference decide between two rankings."""
SCANS = 4
"""So many times at most the effects of all units that are left are measured."""


def ranked_units(
    vit: ViT,
    circuit: Circuit,
    cost: Cost,
    most: float,
    *,
    ablation: Ablation,
    reference: Tensor | None,
) -> Units:
    """The circuit's units, best first.

    Args:
        vit: the whole model.
        circuit: its units are ranked; scores of edges don't count.
        cost: what a model with only some units costs.
        most: what it may cost; effects are measured anew until then.
        ablation: what removed units write.
        reference: images for the effects and for `mean`; without any, 8 seeded normal images.
    """
    units = circuit.units()
    if _is_random(circuit):
        return _drawn(circuit, units)
    if not measures_effects(circuit):
        return by_worth({unit: circuit.scores[unit] for unit in units}, cost)

    problem = effects_problem(vit, ablation, reference)
    effects = {units: node_effects(problem, units)}

    def measure(left: Units) -> Mapping[str, float]:
        if left not in effects:
            effects[left] = node_effects(problem, left)
        return effects[left]

    orders = by_worth(measure(units), cost), by_measured_worth(units, measure, cost, most)
    kept = [units_within(vit.config, order, cost, most) for order in orders]
    if kept[0] == kept[1]:
        return orders[0]
    apart = effects_problem(vit, ablation, reference, apart=True)
    return orders[0] if _loss(apart, kept[0]) <= _loss(apart, kept[1]) else orders[1]


def _is_random(circuit: Circuit) -> bool:
    """Whether chance alone chose it: every part of a combination is random."""
    return circuit.provenance.methods == {"random"}


def measures_effects(circuit: Circuit) -> bool:
    """Whether a circuit's units rank by effects on images: not by scores, and not by chance.

    Scores that are random in part are no effects.
    """
    scored = all(unit in circuit.scores for unit in circuit.units())
    by_chance = "random" in circuit.provenance.methods
    return not _is_random(circuit) and (by_chance or not scored)


def warn_of_other_ablation(circuit: Circuit, ablation: Ablation) -> None:
    """Say so where node scores rank that were found under another ablation than is compiled."""
    known = circuit.provenance.known("ablation")
    by_scores = not (_is_random(circuit) or measures_effects(circuit))
    if by_scores and set(known) - {ablation, "patch"}:  # patch can't be compiled
        warn(
            f"units are ranked by node scores found under {', '.join(known)}, while removed units "
            f"of the compiled model write what {ablation!r} says. Circuit.full(vit.config) with "
            "reference=images ranks them by effects measured under that, which does better."
        )


def _drawn(circuit: Circuit, units: Units) -> Units:
    """The order of random node scores; of other random circuits, one that their origin draws.

    The origin is their seed and the number of the draw, or else the edges and their scores. The
    order has nothing to do with costs or with how many edges leave a unit, so every one is equally
    likely.
    """
    everything = list(units_of(circuit.config))
    origin = circuit.provenance
    drawn_by = repr((origin.seed, origin.selection))
    if origin.seed is None:  # a combination of several
        drawn_by = repr((circuit.edges, list(circuit.scores.values())))
    random.Random(drawn_by).shuffle(everything)
    order = tuple(unit for unit in everything if unit in set(units))
    if all(unit in circuit.scores for unit in units):  # ranks that are averaged often tie
        return tuple(sorted(order, key=lambda unit: -abs(circuit.scores[unit])))
    return order


def by_worth(effects: Mapping[str, float], cost: Cost) -> Units:
    """Units by effect for what they save, best first; ties fall by the pinned order.

    A unit whose removal saves nothing stays longest, unless it does harm. Heads of one block save
    alike, since a cost is one of shapes.
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
    units: Units, measure: Callable[[Units], Mapping[str, float]], cost: Cost, most: float
) -> Units:
    """Units by worth, best first, with effects measured anew after each quarter that goes.

    Args:
        units: in forward order.
        measure: the effects of the units that are left.
        cost: what some units cost.
        most: what those may cost among which the last effects decide.
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


def effects_problem(
    vit: ViT, ablation: Ablation, reference: Tensor | None, *, apart: bool = False
) -> Problem:
    """KL to the dense model on some images of the reference, spread evenly over it.

    Args:
        vit: the dense model.
        ablation: what removed units write.
        reference: the images; without any, 8 seeded normal images.
        apart: take other images than otherwise, if there are more than `IMAGES`.
    """
    images = sample_images(vit) if reference is None or not len(reference) else reference
    places = _spread(len(images), IMAGES)
    if apart and len(images) > len(places):
        others = sorted(set(range(len(images))) - set(places))
        places = [others[place] for place in _spread(len(others), IMAGES_APART)]
    return Problem.checked(
        vit, Pairs(clean=images[torch.tensor(places, device=images.device)]), metric="kl",
        ablation=ablation, level="node", reference=reference,
    )  # fmt: skip


def _spread(count: int, most: int) -> list[int]:
    """At most so many places of a row, evenly spread."""
    return [int(place) for place in torch.linspace(0, count - 1, min(most, count)).round()]


@torch.no_grad()
def node_effects(problem: Problem, units: Units) -> dict[str, float]:
    """How much the loss rises when each of some units goes, the others there.

    Units beyond these are gone all the time.
    """
    gone = set(units_of(problem.vit.config)) - set(units)
    removed = [set[str](), gone, *(gone | {unit} for unit in units)]
    with progress("node effects", len(removed) * len(problem.pairs)) as advance:
        full, kept, *others = logits_without(problem, removed, advance=advance)
    start = mean_loss(problem, kept, full)
    return {
        unit: mean_loss(problem, logits, full) - start
        for unit, logits in zip(units, others, strict=True)
    }


@torch.no_grad()
def _loss(problem: Problem, units: Units) -> float:
    """The loss when only some units are there."""
    gone = set(units_of(problem.vit.config)) - set(units)
    full, kept = logits_without(problem, [(), gone])
    return mean_loss(problem, kept, full)
