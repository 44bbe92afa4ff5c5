"""Positive values of some rows over time, as colours on a logarithmic scale. Knows no torch."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from circuitvit.charts.chart import GREY, AnyFigure, frame
from circuitvit.charts.heatmap import EMPTY, SCALE
from circuitvit.escaping import escape


def timeline(
    rows: Sequence[str],
    times: Sequence[int],
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    subtitle: str,
    reading: str = "",
    x_title: str,
    scale_title: str,
) -> AnyFigure:
    """Draw a row of cells for each name, the first on top.

    Args:
        rows: their names; texts are shown literally.
        times: whole numbers, along the horizontal axis.
        values: [row time], ≥ 0; a cell without one, or with 0, has no colour.
        title: the heading.
        subtitle: a smaller line below it.
        reading: how to read it, in two sentences.
        x_title: what the times are.
        scale_title: what the colours show.
    """
    # plotly takes longer to import than all the rest
    from circuitvit.charts.saved_figure import Figure as Drawn

    cells = [[math.log10(v) if v else None for v in row] for row in values]
    known = [v for row in cells for v in row if v is not None] or [0.0]
    low, high = min(known), max(known)
    if high - low < 0.1:  # one colour would be as good as any
        low, high = low - 0.5, high + 0.5
    ticks = list(_ticks(low, high))
    told = [[_said(name, t, v, x_title) for t, v in zip(times, row, strict=True)]
            for name, row in zip(rows, values, strict=True)]  # fmt: skip
    trace = {
        "type": "heatmap",
        "x": list(times),
        "y": list(range(len(rows))),
        "z": cells,
        "zmin": low,
        "zmax": high,
        "colorscale": SCALE,
        "ygap": 1,
        "xgap": 1 if len(times) <= 60 else 0,
        "customdata": told,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": True,
        "colorbar": {
            "title": {"text": escape(scale_title)},
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:zg}" for tick in ticks],
            "outlinewidth": 0,
            "thickness": 14,
        },
    }
    basis = frame(title, subtitle, reading, least_height=150 + 24 * len(rows))
    return Drawn([trace], layout=_layout(rows, times, x_title, basis))


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers between two powers of ten: every 1, 2 and 5, or few enough of them."""
    decades = high - low
    steps = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 5 else (1,)
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in steps:
            tick = step * 10.0**power
            if low <= math.log10(tick) <= high:
                yield tick


def _said(name: str, time: int, value: float | None, x_title: str) -> str:
    told = "not recorded" if value is None else f"{value:z.3g}"
    return f"{escape(name)}<br>{escape(x_title)} {time}<br>{told}"


def _layout(
    rows: Sequence[str], times: Sequence[int], x_title: str, basis: dict[str, Any]
) -> dict[str, Any]:
    axis = {"showgrid": False, "zeroline": False, "linecolor": GREY}
    whole = {"tickmode": "array", "tickvals": list(times)} if len(times) <= 20 else {}
    return {
        **basis,
        "plot_bgcolor": EMPTY,
        "margin": {"l": 16, "r": 24, "t": basis["margin"]["t"], "b": 56},
        "height": max(360, 150 + 24 * len(rows)),
        "xaxis": {**axis, **whole, "title": {"text": escape(x_title)}, "ticks": "outside"},
        "yaxis": {
            **axis,
            "tickvals": list(range(len(rows))),
            "ticktext": [escape(name) for name in rows],
            "range": [len(rows) - 0.5, -0.5],
            "automargin": True,
        },
    }
