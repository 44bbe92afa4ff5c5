"""The picture of a graph that a notebook shows: a still SVG that needs no JavaScript.

plotly.js would add 4.8 MB to a notebook's output or need the network. An `<img>` with the SVG
inside weighs tens of kilobytes and survives what Jupyter, VS Code and nbviewer strip from the
outputs of a notebook that they do not trust; inline SVG and scripts do not.
"""

import base64
from collections.abc import Callable

import networkx as nx
import numpy as np

from circuitvit.charts.theme import FONT, GHOST, HEAD, INK
from circuitvit.escaping import escape
from circuitvit.explore.drawing import (
    MLP_ROW,
    NEGATIVE,
    POSITIVE,
    Drawing,
    Unit,
    read_graph,
    strokes,
)

DRAWN_EDGES = 1500
ToPixels = Callable[[np.ndarray], np.ndarray]  # from the drawing's coordinates to pixels
_WIDTH, _TOP, _LEFT = 960, 64, 64


def notebook_html(graph: nx.DiGraph, *, title: str) -> str:
    """A still picture of a graph, as one `<img>`; of a large graph, the strongest edges only.

    Args:
        graph: a graph that `edge_graph` or `Circuit.graph` made.
        title: the heading; it is shown literally.
    """
    drawing = read_graph(graph)
    data = base64.b64encode(_svg(drawing, title).encode()).decode()
    return (
        f'<img alt="{escape(title)}" style="max-width:100%;width:{_WIDTH}px;background:#fff" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def _svg(drawing: Drawing, title: str) -> str:
    left, right, low, high = drawing.bounds()
    scale_x = (_WIDTH - _LEFT) / (right - left)
    scale_y = min(scale_x, 420 / (high - low))
    height = round(_TOP + (high - low) * scale_y)

    def place(points: np.ndarray) -> np.ndarray:
        origin, scale = np.array([left, high]), np.array([scale_x, -scale_y])
        return (points - origin) * scale + (_LEFT, _TOP)

    radius = float(np.clip(0.17 * min(2 * scale_x, 2 * scale_y, 70), 2.5, 12))
    body = [*_frame(drawing, place, height, title), *_edges(drawing, place)]
    body += [_dot(unit, place(np.array([unit.x, unit.y])), radius) for unit in drawing.units]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="{escape(FONT)}" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>'
    )


def _frame(drawing: Drawing, place: ToPixels, height: int, title: str) -> list[str]:
    """Title, block bands and the names of the rows."""
    total = len(drawing.score)
    title = title if len(title) <= 80 else f"{title[:79]}…"
    shown = (
        f"{total:,} edges" if total <= DRAWN_EDGES else f"{DRAWN_EDGES:,} of {total:,} edges drawn"
    )
    if idle := int(drawing.dangling.sum()):
        shown += f", {idle:,} of them dangling (grey)"
    parts = [
        f'<text x="16" y="24" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
        f'<text x="{_WIDTH - 16}" y="24" text-anchor="end" fill="#7b8794">{shown} · removing '
        f'<tspan fill="{POSITIVE}">hurts</tspan> or <tspan fill="{NEGATIVE}">helps</tspan></text>',
    ]
    for block in range(drawing.blocks):
        (x0, _), (x1, _) = place(np.array([[2 * block + 0.5, 0.0], [2 * block + 2.5, 0.0]]))
        if block % 2 == 0:
            parts.append(
                f'<rect x="{x0:.1f}" y="{_TOP - 8}" width="{x1 - x0:.1f}" '
                f'height="{height - _TOP}" fill="#f4f6f8"/>'
            )
        parts.append(
            f'<text x="{(x0 + x1) / 2:.1f}" y="{_TOP - 14}" text-anchor="middle" '
            f'fill="#7b8794">block {block}</text>'
        )
    rows = [(f"head {head}", float(head)) for head in range(drawing.heads)] + [("MLP", MLP_ROW)]
    for name, row in rows:
        y = place(np.array([0.0, row]))[1]
        parts.append(f'<text x="16" y="{y + 4:.1f}" fill="#7b8794">{name}</text>')
    return parts


def _edges(drawing: Drawing, place: ToPixels) -> list[str]:
    """One path a stroke, out of the strongest edges."""
    rank = np.where(drawing.dangling, -1.0, drawing.size)
    chosen = np.sort(np.argsort(-rank, kind="stable")[:DRAWN_EDGES])
    controls = place(drawing.controls[chosen])
    return [
        f'<path fill="none" stroke="{kind.color}" stroke-width="{kind.width}" '
        f'stroke-opacity="{kind.opacity}" d="{"".join(_curve(c) for c in controls[kind.edges])}"/>'
        for kind in strokes(drawing.score[chosen], drawing.dangling[chosen])
    ]


def _curve(controls: np.ndarray) -> str:
    (x0, y0), *rest = controls.round(1).tolist()
    return f"M{x0:g} {y0:g}C" + " ".join(f"{x:g} {y:g}" for x, y in rest)


def _dot(unit: Unit, center: np.ndarray, radius: float) -> str:
    x, y = center.round(1).tolist()
    fill = (HEAD if unit.kind == "head" else INK) if unit.present else GHOST["fill"]
    line, ink = ("#fff", "#fff") if unit.present else (GHOST["line"], GHOST["text"])
    style = f'fill="{fill}" stroke="{line}" stroke-width="1.2"'
    if unit.block is None:
        reach, name = radius * 1.1, escape(unit.name)
        side = -1 if unit.kind == "embed" else 1
        anchor = "end" if side < 0 else "start"
        return (
            f'<path d="M{x - reach:g} {y}L{x} {y - reach:g}L{x + reach:g} {y}L{x} {y + reach:g}Z" '
            f'{style}/><text x="{x + side * (radius + 6):g}" y="{y + 4:g}" fill="{INK}" '
            f'text-anchor="{anchor}">{name}</text>'
        )
    name = f"h{unit.head}" if unit.kind == "head" else f"m{unit.block}"
    label = (
        f'<text x="{x}" y="{y + 3.5:g}" font-size="9.5" fill="{ink}" '
        f'text-anchor="middle">{name}</text>'
    )
    shape = (
        f'<circle cx="{x}" cy="{y}" r="{radius:g}" {style}/>'
        if unit.kind == "head"
        else f'<rect x="{x - radius * 0.9:g}" y="{y - radius * 0.9:g}" width="{radius * 1.8:g}" '
        f'height="{radius * 1.8:g}" {style}/>'
    )
    return shape + (label if radius > 9 else "")
