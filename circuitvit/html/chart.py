"""Charts of measurements: lines with bands, or dots with bars. Knows neither circuits nor torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from circuitvit.files import write_text
from circuitvit.html.escaping import escape
from circuitvit.html.plotly_figure import FONT, INK

if TYPE_CHECKING:
    import plotly.graph_objects

# A name that the rooms above can annotate with, without plotly.
Figure: TypeAlias = "plotly.graph_objects.Figure"

GREY = "#7b8794"
GRID = "#e4e7eb"


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Attributes:
        name: what the legend says; shown literally, as is `hover`.
        x: places along the axis, or names.
        y: values; None, here and in the intervals, where there is none, which leaves a gap.
        low: lower ends of the intervals; none are drawn if left out.
        high: upper ends.
        color: as in CSS.
        mark: a line with a band, or dots with bars.
        dash: how the line is drawn.
        symbol: of each mark, by plotly's name, such as `square` or `circle-open`.
        hover: what to say beside each point.
    """

    name: str
    x: Sequence[float] | Sequence[int] | Sequence[str]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    color: str = INK
    mark: Literal["line", "dots"] = "line"
    dash: Literal["solid", "dot"] = "solid"
    symbol: str = "circle"
    hover: Sequence[str] | None = None


def chart(
    series: Sequence[Series],
    *,
    title: str,
    subtitle: str,
    x_title: str,
    y_title: str,
    x_kind: Literal["log", "linear", "category"] = "linear",
    level: float | None = None,
    level_name: str = "",
    diagonal: bool = False,
) -> Figure:
    """Draw series in one pair of axes.

    Args:
        series: those drawn first lie below.
        title: the heading; texts are shown literally.
        subtitle: a smaller line below it.
        x_title: what the horizontal axis shows.
        y_title: what the vertical axis shows.
        x_kind: of the horizontal axis.
        level: where a horizontal reference line goes.
        level_name: what is written on it.
        diagonal: whether to draw the line on which x = y, with both axes over the same range.
    """
    import plotly.graph_objects as go  # plotly takes longer to import than all the rest

    traces: list[dict[str, Any]] = []
    for item in series:
        if item.mark == "line" and item.low is not None and item.high is not None:
            traces.append(_band(item, item.low, item.high))
        traces.append(_marks(item))
    drawn = go.Figure(traces, layout=_layout(title, subtitle, x_title, y_title, x_kind))
    if level is not None:
        drawn.add_hline(
            y=level,
            line={"color": INK, "width": 1, "dash": "dash"},
            annotation={"text": escape(level_name), "font": {"size": 11, "color": GREY}},
            annotation_position="top left",
        )
    if diagonal:
        ends_of = [(*s.x, *s.y, *(s.low or ()), *(s.high or ())) for s in series]
        numbers = [float(value) for values in ends_of for value in values if value is not None]
        margin = 0.05 * (max(numbers) - min(numbers) or 1.0)
        ends = [min(numbers) - margin, max(numbers) + margin]
        drawn.update_xaxes(range=ends).update_yaxes(range=ends)
        drawn.add_shape(
            type="line",
            x0=ends[0],
            y0=ends[0],
            x1=ends[1],
            y1=ends[1],
            layer="below",
            line={"color": GREY, "width": 1, "dash": "dash"},
        )
    return drawn


def chart_page(path: str | os.PathLike[str], drawn: Figure) -> Path:
    """Write a figure as a page with plotly.js in it.

    Raises:
        CircuitError: the file can't be written.
    """
    text = drawn.to_html(full_html=True, include_plotlyjs=True, config={"displaylogo": False})
    return write_text(path, text)


def frame(title: str, subtitle: str) -> dict[str, Any]:
    """What the layouts of all charts share; both texts are shown literally."""
    heading = f"{escape(title)}<br><span style='font-size:12px'>{escape(subtitle)}</span>"
    return {
        "template": "none",
        "title": {"text": heading, "x": 0.02, "font": {"size": 17}},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"family": FONT, "color": INK}},
    }


def _band(
    item: Series, low: Sequence[float | None], high: Sequence[float | None]
) -> dict[str, Any]:
    known = [(x, a, b) for x, a, b in zip(item.x, low, high, strict=True) if a is not None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{escape(item.name)}, interval",
        "legendgroup": item.name,
        "showlegend": False,
        "x": [x for x, _, _ in (*known, *reversed(known))],
        "y": [*(high for _, _, high in known), *(low for _, low, _ in reversed(known))],
        "fill": "toself",
        "fillcolor": item.color,
        "opacity": 0.16,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _marks(item: Series) -> dict[str, Any]:
    marks: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if item.mark == "line" else "markers",
        "name": escape(item.name),
        "legendgroup": item.name,
        "x": list(item.x),
        "y": list(item.y),
        "marker": {"color": item.color, "size": 7, "symbol": item.symbol},
        "line": {"color": item.color, "width": 2, "dash": item.dash},
        "customdata": [escape(text) for text in item.hover or [""] * len(item.y)],
        "hovertemplate": "%{y:.3f} at %{x}<br>%{customdata}",
    }
    if item.mark == "dots" and item.low is not None and item.high is not None:
        marks["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _lengths(item.y, item.high),
            "arrayminus": _lengths(item.low, item.y),
            "thickness": 1.2,
            "width": 3,
        }
    return marks


def _lengths(start: Sequence[float | None], end: Sequence[float | None]) -> list[float | None]:
    """How far it is from each start to each end; None where one of them is missing."""
    pairs = zip(start, end, strict=True)
    return [None if a is None or b is None else b - a for a, b in pairs]


def _layout(title: str, subtitle: str, x_title: str, y_title: str, x_kind: str) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GREY, "ticks": "outside"}
    x_axis = {**axis, "type": x_kind, "title": {"text": escape(x_title)}, "showline": True}
    if x_kind == "log":
        x_axis |= {"dtick": "D2", "tickformat": "~g"}
    if x_kind == "category":
        x_axis |= {"showgrid": False}
    return {
        **frame(title, subtitle),
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2, "x": 0, "bgcolor": "rgba(0,0,0,0)"},
        "margin": {"l": 68, "r": 24, "t": 76, "b": 56},
        "height": 520,
        "xaxis": x_axis,
        "yaxis": {**axis, "title": {"text": escape(y_title)}},
    }
