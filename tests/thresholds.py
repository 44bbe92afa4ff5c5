"""Values of τ at which ACDC really chooses: it keeps 3–30% of the edges."""

import math
from itertools import pairwise

import circuitvit as cv
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.graph.edge_graph import edge_names_of

RANGE = (0.03, 0.3)
TARGETS = (0.27, 0.1, 0.04)

SEEDS = {
    "uniform": 77,
    "ragged": 70,
    "mean": 77,
    "mean, fc_norm, no class token": 76,
    "registers, q/k norm, no qkv bias, tanh": 77,
}
"""Of random models whose edges matter: with three pairs and τ = 0.02 some 5 to 25 stay."""

ALL_ON = {"pooled": True, "folded": True, "batched": True, "states": 3, "low_rank": True}
ALL_OFF = {"pooled": False, "folded": False, "batched": False, "states": 1, "low_rank": False}
SPEEDUPS = {
    "all on": Speedups(**ALL_ON),
    "all off": Speedups(**ALL_OFF),
    **{f"{name} off": Speedups(**{**ALL_ON, name: ALL_OFF[name]}) for name in ALL_ON},
}
"""Every speed-up forced, forbidden, and each of them forbidden on its own."""


def share_kept(circuit: cv.Circuit) -> float:
    return len(circuit) / len(edge_names_of(circuit.config, circuit.qkv))


def is_telling(circuit: cv.Circuit) -> bool:
    return RANGE[0] <= share_kept(circuit) <= RANGE[1]


def telling_circuits(vit, pairs, count: int = 5, **options) -> dict[float, cv.Circuit]:
    """By τ, `count` circuits spread over the range; nearest to it, where it can't be reached.

    τ is bisected on a logarithmic scale, then the gaps between what was found are filled.
    """
    found: dict[float, cv.Circuit] = {}

    def tried(tau: float) -> float:
        if tau not in found:
            found[tau] = cv.acdc(vit, pairs, tau=tau, **options)
        return share_kept(found[tau])

    for target in TARGETS:
        low = max((t for t, c in found.items() if share_kept(c) > target), default=1e-10)
        high = min((t for t in found if t > low), default=1e2)
        for _ in range(10):
            middle = math.sqrt(low * high)
            share = tried(middle)
            if abs(share - target) < 0.3 * target:
                break
            low, high = (middle, high) if share > target else (low, middle)
    for _ in range(8):
        inside = sorted(tau for tau, circuit in found.items() if is_telling(circuit))
        if len(inside) >= count or not inside:
            break
        gaps = sorted(pairwise(inside), key=lambda gap: gap[0] / gap[1])
        tried(math.sqrt(gaps[0][0] * gaps[0][1]) if gaps else inside[0] * 1.05)
    middle = math.log(math.sqrt(RANGE[0] * RANGE[1]))
    nearest = sorted(found, key=lambda t: abs(math.log(max(share_kept(found[t]), 1e-3)) - middle))
    inside = [tau for tau in nearest if is_telling(found[tau])]
    taus = sorted(inside) if len(inside) >= count else sorted(nearest[:count])
    chosen = [taus[round(i * (len(taus) - 1) / max(1, count - 1))] for i in range(count)]
    return {tau: found[tau] for tau in chosen}
