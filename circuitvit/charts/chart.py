"""Charts of measurements: lines with bands, or dots with bars; how they are read; their page."""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from circuitvit.charts.theme import FONT, INK
from circuitvit.errors import CircuitError, in_short
from circuitvit.escaping import escape
from circuitvit.files import write_text, writing_folder

if TYPE_CHECKING:
    import circuitvit.charts.saved_figure


PLOTLY_FILE = "plotly.min.js"

PlotlyJS: TypeAlias = bool | Literal["directory"]
"""True is in the page (5 MB), `"directory"` beside it, one for all pages of a folder."""


def check_plotlyjs(plotlyjs: Any) -> None:
    """Refuse what would leave a page that shows nothing offline.

    Raises:
        CircuitError: it is neither True nor `"directory"`.
    """
    if plotlyjs is not True and plotlyjs != "directory":
        raise CircuitError(
            f"plotlyjs is {in_short(plotlyjs)}, expected True (plotly.js in the page) or "
            "'directory' (beside it, one file for all pages of a folder)."
        )


def write_page(path: str | os.PathLike[str], text: str, plotlyjs: PlotlyJS) -> Path:
    """Write a page and, if it is to lie beside it, plotly.js; both or neither.

    Raises:
        CircuitError: they can't be written.
    """
    if plotlyjs != "directory":
        return write_text(path, text)
    from plotly.offline import get_plotlyjs  # plotly takes longer to import than all the rest

    with writing_folder(Path(path).parent) as beside:
        write_text(beside / PLOTLY_FILE, get_plotlyjs())
        write_text(beside / Path(path).name, text)
    return Path(path)


# A name that the rooms above can annotate with, without plotly.
AnyFigure: TypeAlias = "circuitvit.charts.saved_figure.Figure"

GREY = "#7b8794"
GRID = "#e4e7eb"
LINE = 110
"""Letters of a line above a figure."""
_PAGE = Path(__file__).with_name("chart.html")


@dataclass(frozen=True)
class Series:
    """One series: everything drawn in one colour.

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
    reading: str = "",
    x_title: str,
    y_title: str,
    x_kind: Literal["log", "linear", "category"] = "linear",
    level: float | None = None,
    level_name: str = "",
    diagonal: bool = False,
) -> AnyFigure:
    """Draw series in one pair of axes.

    Args:
        series: those drawn first lie below.
        title: the heading; texts are shown literally.
        subtitle: a smaller line below it.
        reading: how to read the chart, in two sentences.
        x_title: what the horizontal axis shows.
        y_title: what the vertical axis shows.
        x_kind: of the horizontal axis.
        level: where a horizontal reference line goes.
        level_name: what is written on it.
        diagonal: whether to draw the line on which x = y, with both axes over the same range.
    """
    # plotly takes longer to import than all the rest
    from circuitvit.charts.saved_figure import Figure as Drawn

    traces: list[dict[str, Any]] = []
    for item in series:
        if item.mark == "line" and item.low is not None and item.high is not None:
            traces.append(_band(item, item.low, item.high))
        traces.append(_marks(item))
    basis = frame(title, subtitle, reading)
    drawn = Drawn(traces, layout={**basis, **_layout(x_title, y_title, x_kind, basis)})
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


def chart_page(
    path: str | os.PathLike[str], drawn: AnyFigure, *, plotlyjs: PlotlyJS = True
) -> Path:
    """Write a figure as a page that works offline: its texts above it, and it fills the window.

    Args:
        path: the file to write.
        drawn: the figure.
        plotlyjs: True puts plotly.js (5 MB) into the page; `"directory"` puts it beside the page,
            one file for all the pages of a folder.

    Raises:
        CircuitError: the file can't be written, or `plotlyjs` is something else.
    """
    check_plotlyjs(plotlyjs)
    layout: Any = drawn.layout
    told: dict[str, Any] = dict(layout.meta or {})
    room: dict[str, Any] = {"title": None, "width": None, "height": None}
    if told:
        room["margin"] = {**layout.margin.to_plotly_json(), "t": 28 + told["above"]}
    element = type(drawn)(drawn).update_layout(room, overwrite=True).to_html(
        full_html=False, include_plotlyjs=plotlyjs,
        config={"displaylogo": False, "responsive": True}, default_height="100%", div_id="chart",
    )  # fmt: skip
    heading = f"<h1>{told['title']}</h1>" if told else ""
    text = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=told["title"] if told else escape(Path(path).stem),
        header="\n".join([heading, *(f"<p>{line}</p>" for line in told.get("lines", ()))]),
        ink=INK,
        font=FONT,
        width=told.get("least_width", 0),
        height=told.get("least_height", 380),
        chart=element,
    )
    return write_page(path, text, plotlyjs)


def frame(
    title: str,
    subtitle: str,
    reading: str = "",
    *,
    above: int = 0,
    least_width: int = 0,
    least_height: int = 380,
) -> dict[str, Any]:
    """The layout shared by all charts; texts are shown literally.

    Args:
        title: the heading.
        subtitle: a smaller line below it: what was measured, on what.
        reading: how to read the chart, in two sentences.
        above: pixels between these and the axes that something else needs.
        least_width: of the chart on a page, in pixels; a narrower window scrolls.
        least_height: likewise.
    """
    texts = [text for text in (reading, subtitle) if text]
    lines = [escape(line) for text in texts for line in textwrap.wrap(text, LINE)]
    small = "".join(f"<br><span style='font-size:12px'>{line}</span>" for line in lines)
    return {
        "template": "none",
        "title": {
            "text": escape(title) + small,
            "x": 0.02,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 17},
        },
        "margin": {"l": 68, "r": 24, "t": 56 + 17 * len(lines) + above, "b": 56},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"family": FONT, "color": INK}},
        "meta": {  # what `chart_page` says in HTML, whose lines break where the window ends
            "title": escape(title),
            "lines": [escape(text) for text in texts],
            "above": above,
            "least_width": least_width,
            "least_height": least_height,
        },
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
    """The distance from each start to each end; None where one of them is missing."""
    pairs = zip(start, end, strict=True)
    return [None if a is None or b is None else b - a for a, b in pairs]


def _layout(x_title: str, y_title: str, x_kind: str, basis: dict[str, Any]) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GREY, "ticks": "outside",
        "automargin": True,
    }  # fmt: skip
    x_axis = {**axis, "type": x_kind, "title": {"text": escape(x_title)}, "showline": True}
    if x_kind == "log":
        x_axis |= {"dtick": "D2", "tickformat": "~g"}
    if x_kind == "category":
        x_axis |= {"showgrid": False}
    return {
        "hovermode": "closest",
        "legend": {
            "orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
        "margin": {**basis["margin"], "b": 84},
        "height": 440 + basis["margin"]["t"],
        "xaxis": x_axis,
        "yaxis": {**axis, "title": {"text": escape(y_title)}},
    }  # fmt: skip


CURVE = (
    "f is how much of the model's behaviour a circuit keeps: 1 is the full model, 0 is no edge at "
    "all. A good ranking comes near 1 with few edges (k is on a logarithmic scale), and lies far "
    "above random circuits of the same size."
)
COMPLETENESS = (
    "Each dot is a random set K that was removed from the circuit and from the full model. A "
    "complete circuit suffers as the model does, so its dots lie on the diagonal; dots below it "
    "tell of parts that stand in for K in the model and are missing from the circuit."
)
MINIMALITY = (
    "Each dot is one kept edge, and its height is the faithfulness that goes with it when it alone "
    "is removed. Edges whose bar reaches 0 are not clearly of use."
)
ABLATIONS = (
    "f is how much of the model's behaviour a circuit keeps: 1 is the full model, 0 is none of it. "
    "A circuit whose dots lie at one height does not depend on what removed edges carry."
)
OVERLAP = (
    "Each cell is the share of two circuits' edges that both have (Jaccard): 1 where they are the "
    "same, 0 where they share none. Compare it with what circuits of these sizes share by chance."
)
PANELS = (
    "Bars and dots further right are more accurate, more confident or larger, as each axis says; "
    "against cost, better models lie further up and left. Models whose intervals overlap may not "
    "differ at all."
)
GRADIENT_FLOW = (
    "Each row is a part of the model and each column an epoch; the darker, the larger the gradient "
    "that reached it. A row that stays far lighter than the others hardly learns."
)
