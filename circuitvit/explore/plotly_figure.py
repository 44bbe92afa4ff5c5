"""The plotly figure: at most 17 traces of edges, and one of units."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from circuitvit.charts.theme import FONT, GHOST, HEAD, INK
from circuitvit.escaping import escape
from circuitvit.explore.drawing import MLP_ROW, Drawing, Stroke, Unit, read_graph, strokes

if TYPE_CHECKING:
    import circuitvit.charts.saved_figure

SVG_EDGES = 2000  # more than these are drawn by WebGL
_SYMBOLS = {"head": "circle", "mlp": "square", "embed": "diamond", "logits": "diamond"}
_HOVER = (
    "<b>%{customdata[0]}</b>  %{customdata[1]}<br>%{customdata[2]} in · %{customdata[3]} out"
    "%{customdata[4]}<extra></extra>"
)


def figure(graph: nx.DiGraph, *, title: str) -> "circuitvit.charts.saved_figure.Figure":
    """Draw a graph as a plotly figure, depth from left to right and heads upwards.

    Args:
        graph: a graph that `edge_graph` or `Circuit.graph` made.
        title: the heading; it is shown literally.
    """
    drawing = read_graph(graph)
    drawn = figure_of(drawing, strokes(drawing.score, drawing.dangling))
    drawn.update_layout(
        title={"text": escape(title), "x": 0.02, "font": {"size": 16}}, margin_t=56, height=640
    )
    return drawn


def figure_of(drawing: Drawing, kinds: Sequence[Stroke]) -> "circuitvit.charts.saved_figure.Figure":
    """The figure without a title; trace t holds the edges of stroke t, then come the units."""
    # plotly takes longer to import than all the rest
    from circuitvit.charts.saved_figure import Figure as Drawn

    gap = ((0, 0), (0, 1), (0, 0))  # a NaN after each edge lifts the pen
    curves = np.pad(drawing.curves(), gap, constant_values=np.nan).astype(np.float32)
    # WebGL draws above SVG, so the units go where the edges go.
    kind_of_trace = "scattergl" if len(curves) > SVG_EDGES else "scatter"
    traces: list[dict[str, Any]] = [
        {
            "type": kind_of_trace,
            "mode": "lines",
            "name": kind.name,
            "x": curves[kind.edges, :, 0].ravel(),
            "y": curves[kind.edges, :, 1].ravel(),
            "line": {"color": kind.color, "width": kind.width},
            "opacity": kind.opacity,
            "hoverinfo": "skip",
        }
        for kind in kinds
    ]
    return Drawn(
        [*traces, {"type": kind_of_trace, **_unit_trace(drawing)}], layout=_layout(drawing)
    )


def _unit_trace(drawing: Drawing) -> dict[str, Any]:
    units, size = drawing.units, _dot_size(drawing)
    labels = [_label(unit, roomy=size >= 18) for unit in units]
    fills = [_fill(unit) for unit in units]
    inside = ["#ffffff" if unit.present else GHOST["text"] for unit in units]
    outer = [unit.block is None for unit in units]
    ends = {"embed": "middle left", "logits": "middle right"}
    return {
        "mode": "markers+text",
        "name": "units",
        "x": [unit.x for unit in units],
        "y": [unit.y for unit in units],
        "text": labels,
        "textposition": [ends.get(unit.kind, "middle center") for unit in units],
        "textfont": {
            "size": [12 if at_end else 10 for at_end in outer],
            "color": [INK if end else ink for end, ink in zip(outer, inside, strict=True)],
        },
        "marker": {
            "symbol": [_SYMBOLS[unit.kind] for unit in units],
            "size": [size * (0.86 if unit.kind == "mlp" else 1) for unit in units],
            "color": fills,
            "opacity": 1,
            "line": {
                "width": 1.5,
                "color": ["#ffffff" if unit.present else GHOST["line"] for unit in units],
            },
        },
        "customdata": _hover_rows(drawing),
        "hovertemplate": _HOVER,
    }


def _dot_size(drawing: Drawing) -> float:
    """A diameter in pixels that leaves room between the dots of a figure of the usual size."""
    columns, rows = 2 * drawing.blocks + 2, drawing.heads + 3
    return float(np.clip(0.42 * min(900 / columns, 560 / rows), 6, 28))


def _label(unit: Unit, *, roomy: bool) -> str:
    if unit.block is None:
        return escape(f" {unit.name} ")
    if not roomy:
        return ""
    return f"h{unit.head}" if unit.kind == "head" else f"m{unit.block}"


def _fill(unit: Unit) -> str:
    if not unit.present:
        return GHOST["fill"]
    return HEAD if unit.kind == "head" else INK


def _hover_rows(drawing: Drawing) -> list[list[Any]]:
    """For each unit: name, what it is, edges in, edges out, its strongest edges as lines."""
    count = len(drawing.units)
    into = np.bincount(drawing.reader_unit, minlength=count)
    out = np.bincount(drawing.writer, minlength=count)
    strongest = _strongest(drawing)
    return [
        [
            escape(unit.name),
            _role(unit),
            int(into[place]),
            int(out[place]),
            "".join(f"<br>{line}" for line in strongest[place]),
        ]
        for place, unit in enumerate(drawing.units)
    ]


def _role(unit: Unit) -> str:
    where = {
        "embed": "patches, positions, tokens",
        "head": f"head {unit.head} of block {unit.block}",
        "mlp": f"MLP of block {unit.block}",
        "logits": "the final LayerNorm and the classifier",
    }[unit.kind]
    return where if unit.present else f"{where} — outside the graph"


def _strongest(drawing: Drawing, limit: int = 3) -> list[list[str]]:
    """The strongest scored edges of each unit, as text; none that dangles."""
    lines: list[list[str]] = [[] for _ in drawing.units]
    known = np.flatnonzero(~np.isnan(drawing.score) & ~drawing.dangling)
    for edge in known[np.argsort(-drawing.size[known], kind="stable")]:
        writer, reader = drawing.writer[edge], drawing.readers[drawing.reader[edge]]
        for unit in (writer, reader.unit):
            if len(lines[unit]) < limit:
                name = escape(f"{drawing.units[writer].name}->{reader.name}")
                lines[unit].append(f"{drawing.score[edge]:+z.3g}  {name}")
    return lines


def _bands(drawing: Drawing) -> list[dict[str, Any]]:
    """A stripe behind each block, every second one tinted."""
    return [
        {
            "type": "rect",
            "layer": "below",
            "x0": 2 * block + 0.5,
            "x1": 2 * block + 2.5,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "fillcolor": "#f4f6f8" if block % 2 == 0 else "#ffffff",
            "line": {"width": 0},
        }
        for block in range(drawing.blocks)
    ]


def _layout(drawing: Drawing) -> dict[str, Any]:
    left, right, low, high = drawing.bounds()
    blocks, heads = range(drawing.blocks), range(drawing.heads)
    quiet = {"showgrid": False, "zeroline": False, "showline": False, "ticks": ""}
    grey = {"size": 11, "color": "#7b8794"}
    return {
        "template": "none",
        "shapes": _bands(drawing),
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "pan",
        "font": {"family": FONT, "size": 12, "color": INK},
        "hoverlabel": {
            "bgcolor": "#ffffff",
            "bordercolor": "#cbd2d9",
            "font": {"family": FONT, "size": 12, "color": INK},
            "align": "left",
        },
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 58, "r": 12, "t": 28, "b": 12},
        "xaxis": {
            **quiet,
            "range": [left, right],
            "side": "top",
            "tickvals": [2 * block + 1.5 for block in blocks],
            "ticktext": [f"block {block}" for block in blocks],
            "tickfont": grey,
        },
        "yaxis": {
            **quiet,
            "range": [low, high],
            "tickvals": [*heads, MLP_ROW],
            "ticktext": [*(f"head {head}" for head in heads), "MLP"],
            "tickfont": grey,
        },
    }
