"""A square heatmap: how alike things are, two by two. Knows neither circuits nor torch."""

from collections.abc import Sequence
from typing import Any

from circuitvit.charts.chart import GREY, AnyFigure, frame
from circuitvit.charts.theme import INK
from circuitvit.escaping import escape

WRITTEN = 20
"""With more names than these, cells are too small to write into."""
LONGEST = 28
EMPTY = "#f1f3f5"
SCALE = [[0.0, "#f3f9fa"], [0.5, "#5fb0bf"], [1.0, "#0b4f5c"]]


def heatmap(
    names: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    own: Sequence[str],
    hover: Sequence[Sequence[str]],
    title: str,
    subtitle: str,
    reading: str = "",
    scale_title: str,
    axis_title: str = "",
) -> AnyFigure:
    """Draw a symmetric matrix of values in 0–1; its diagonal is left out of the colours.

    Args:
        names: of the rows and columns; texts are shown literally.
        values: the matrix.
        own: what to write into the diagonal's cells.
        hover: what to say of each cell; lines are parted by newlines.
        title: the heading.
        subtitle: a smaller line below it.
        reading: how to read it, in two sentences.
        scale_title: what the colours show.
        axis_title: what the rows and columns are.
    """
    # plotly takes longer to import than all the rest
    from circuitvit.charts.saved_figure import Figure as Drawn

    count = len(names)
    cells = [[None if i == j else values[i][j] for j in range(count)] for i in range(count)]
    most = max((value for row in cells for value in row if value is not None), default=1.0)
    top = most or 1.0
    trace = {
        "type": "heatmap",
        "z": cells,
        "zmin": 0.0,
        "zmax": top,
        "colorscale": SCALE,
        "xgap": 2,
        "ygap": 2,
        "customdata": [[_lines(text) for text in row] for row in hover],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": True,
        "colorbar": {"title": {"text": escape(scale_title)}, "outlinewidth": 0, "thickness": 14},
    }
    drawn = Drawn([trace], layout=_layout(names, axis_title, frame(title, subtitle, reading)))
    if count <= WRITTEN:
        drawn.update_layout(annotations=list(_written(cells, own, top)))
    return drawn


def _written(
    cells: Sequence[Sequence[float | None]], own: Sequence[str], top: float
) -> list[dict[str, Any]]:
    """The cells' texts: the values, dark on light and light on dark."""
    notes = []
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            dark = value is not None and value > 0.7 * top
            color = GREY if value is None else ("#ffffff" if dark else INK)
            text = escape(own[i]) if value is None else f"{value:z.2f}"
            font = {"size": 11, "color": color}
            notes.append({"x": j, "y": i, "text": text, "showarrow": False, "font": font})
    return notes


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _layout(names: Sequence[str], axis_title: str, basis: dict[str, Any]) -> dict[str, Any]:
    count = len(names)
    every = max(1, count // 60)
    places = list(range(0, count, every))
    axis = {
        "title": {"text": escape(axis_title)},
        "tickvals": places,
        "ticktext": [escape(_short(names[place])) for place in places],
        "showgrid": False,
        "zeroline": False,
        "showline": False,
        "range": [-0.5, count - 0.5],
        "tickfont": {"size": 12 if count <= WRITTEN else 10},
    }
    side = min(900, 220 + 58 * count) if count <= WRITTEN else 900
    return {
        **basis,
        "plot_bgcolor": EMPTY,
        "margin": {"l": 16, "r": 24, "t": basis["margin"]["t"], "b": 16},
        "width": max(820, side + 120),
        "height": max(420, side),
        "xaxis": {**axis, "automargin": True, "constrain": "domain"},
        "yaxis": {
            **axis,
            "range": [count - 0.5, -0.5],
            "automargin": True,
            "scaleanchor": "x",
            "constrain": "domain",
        },
    }
