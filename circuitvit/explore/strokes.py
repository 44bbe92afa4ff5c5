"""Edges as a few kinds of stroke: never one trace an edge.

Colour says the sign of the score, width and opacity say where |score| lies among all.
"""

from dataclasses import dataclass

import numpy as np

POSITIVE = "#d9480f"
NEGATIVE = "#1c6fd1"
NEUTRAL = "#7b8794"
IDLE = "#c3ccd5"
LEVELS = 8


@dataclass(frozen=True)
class Stroke:
    """How a bucket of edges is drawn.

    Attributes:
        name: what a legend would say.
        color: warm for positive scores, cool for negative ones, grey for none and zero.
        width: in pixels.
        opacity: 0 to 1.
        edges: which edges, as indices; int64 [edge].
    """

    name: str
    color: str
    width: float
    opacity: float
    edges: np.ndarray


def strokes(score: np.ndarray, dangling: np.ndarray) -> tuple[Stroke, ...]:
    """Sort edges into at most 2·LEVELS + 2 strokes, the faintest first, so strong ones lie on top.

    Edges that dangle carry nothing, whatever they once scored: they are the first stroke.

    Levels are quantiles of |score| over all scored edges. In a large graph the upper levels become
    narrower, since a tenth of 30,000 edges would cover everything.

    Args:
        score: float64 [edge]; NaN where an edge has no score.
        dangling: bool [edge].
    """
    count = max(len(score), 1)
    scored = (np.nan_to_num(score, nan=0.0) != 0) & ~dangling
    size = np.abs(score[scored])
    share = np.zeros(len(score))
    share[scored] = np.searchsorted(np.sort(size), size, side="right") / max(len(size), 1)
    squeeze = 1 + np.clip(np.log10(count / 100), 0, 2.5)
    cuts = 1 - (1 - np.arange(1, LEVELS) / LEVELS) ** squeeze
    level = np.searchsorted(cuts, share, side="left")
    faint = min(0.6, 12 / count**0.5)
    idle, unscored = np.flatnonzero(dangling), np.flatnonzero(~scored & ~dangling)
    found = [Stroke("dangling: carries nothing", IDLE, 1.2, 0.9, idle)] if len(idle) else []
    found += [Stroke("no score, or zero", NEUTRAL, 1.2, faint, unscored)] if len(unscored) else []
    for step in range(LEVELS):
        for sign, color in ((-1, NEGATIVE), (1, POSITIVE)):
            inside = np.flatnonzero(scored & (level == step) & (np.sign(score) == sign))
            if len(inside):
                found.append(_stroke(score, inside, step, color, squeeze))
    return tuple(found)


def _stroke(score: np.ndarray, inside: np.ndarray, step: int, color: str, squeeze: float) -> Stroke:
    share, count = (step + 1) / LEVELS, len(score)
    thick = float(np.clip(4.8 - 0.8 * np.log10(count), 1.4, 3.6))
    faint = min(0.35, 6 / count**0.5)
    sign = "positive" if color == POSITIVE else "negative"
    least = np.abs(score[inside]).min()
    return Stroke(
        name=f"{sign}, |score| from {least:z.3g}",
        color=color,
        width=round(thick * (0.2 + 0.8 * share**2), 2),
        opacity=round(float(faint + (0.92 - faint) * share ** (2 * squeeze)), 3),
        edges=inside,
    )
