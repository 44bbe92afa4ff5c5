"""The interactive page: one file that opens anywhere, offline.

Behaviour is in graph.js and page.js, looks are in page.css, the skeleton is page.html; this module
fills it. A Content-Security-Policy lets only the page's own scripts run, by their hashes, and
loads nothing.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import networkx as nx
import numpy as np

from circuitvit.charts.chart import PLOTLY_FILE, PlotlyJS, check_plotlyjs, write_page
from circuitvit.charts.theme import GHOST
from circuitvit.escaping import escape, json_in_script
from circuitvit.explore.drawing import (
    IDLE,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    Drawing,
    Stroke,
    read_graph,
    strokes,
)
from circuitvit.explore.plotly_figure import SVG_EDGES, figure_of

_HERE = Path(__file__).parent


def page(
    path: str | os.PathLike[str],
    graph: nx.DiGraph,
    *,
    title: str,
    details: Mapping[str, object],
    plotlyjs: PlotlyJS,
) -> Path:
    """Write an interactive page of a graph.

    Args:
        path: the file to write.
        graph: a graph that `edge_graph` or `Circuit.graph` made.
        title: the page's heading; it is shown literally, as are the details.
        details: what to tell beside the graph: how it was found.
        plotlyjs: True puts plotly.js (4.8 MB) into the page, `"directory"` puts it beside the page
            as plotly.min.js.

    Returns:
        The path.

    Raises:
        CircuitError: the graph can't be drawn, the file can't be written, or `plotlyjs` is
            something else.
    """
    check_plotlyjs(plotlyjs)
    from plotly.offline import get_plotlyjs  # plotly takes longer to import than all the rest

    drawing = read_graph(graph)
    js = _resource("graph.js") + _resource("page.js")
    library, sources = get_plotlyjs(), [_hash(js)]
    if plotlyjs == "directory":
        # A page opened as a file has no origin, so 'self' does not cover its neighbour.
        sources += ["'self'", "file:"]
        element = f'<script src="{PLOTLY_FILE}"></script>'
    else:
        sources.append(_hash(library))
        element = f"<script>{library}</script>"
    text = Template(_resource("page.html")).substitute(
        policy=_policy(sources, webgl=len(drawing.score) > SVG_EDGES),
        title=escape(title),
        positive=POSITIVE,
        negative=NEGATIVE,
        neutral=NEUTRAL,
        idle=IDLE,
        css=_resource("page.css"),
        details=_details(details),
        data=json_in_script(_data(drawing, title)),
        plotly=element,
        js=js,
    )
    return write_page(path, text, plotlyjs)


def _resource(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script's name in a Content-Security-Policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _policy(sources: list[str], *, webgl: bool) -> str:
    # WebGL traces compile their drawing code at run time, which needs 'unsafe-eval'; plotly sets
    # styles on elements; a picture is made through blob: and data: URLs.
    scripts = [*sources, "'unsafe-eval'"] if webgl else sources
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _details(details: Mapping[str, object]) -> str:
    if not details:
        return ""
    rows = "".join(
        f"<div><dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(_shown(value))}</dd></div>"
        for key, value in details.items()
    )
    return f'<section id="details"><h2>How it was found</h2><dl>{rows}</dl></section>'


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:z.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _data(drawing: Drawing, title: str) -> dict[str, Any]:
    """The data of page.js; edges are ordered trace by trace, as in the figure's own arrays."""
    kinds: tuple[Stroke, ...] = strokes(drawing.score, drawing.dangling)
    order = np.concatenate([np.zeros(0, np.int64), *(kind.edges for kind in kinds)])
    figure = json.loads(figure_of(drawing, kinds).to_json() or "{}")
    for trace in figure["data"][:-1]:
        del trace["x"], trace["y"]  # `points` holds them in a quarter of the size
    points, corner, step = _packed(drawing.curves()[order])
    return {
        "title": title,
        "figure": {"data": figure["data"], "layout": figure["layout"]},
        "ghost": GHOST,
        "points": _typed(points),
        "corner": corner,
        "step": step,
        "counts": [len(kind.edges) for kind in kinds],
        "dangling": int(drawing.dangling.sum()),  # they are the first stroke
        "units": [{"name": unit.name, "kind": unit.kind} for unit in drawing.units],
        "readers": [vars(reader) for reader in drawing.readers],
        "writer": _typed(drawing.writer[order].astype(np.uint16)),
        "reader": _typed(drawing.reader[order].astype(np.uint16)),
        "score": _typed(drawing.score[order]),
    }


def _packed(points: np.ndarray) -> tuple[np.ndarray, list[float], list[float]]:
    """Points on a grid of 65,536 steps a side, far finer than a screen: uint16, corner, step."""
    flat = points.reshape(-1, 2)
    low = flat.min(0) if len(flat) else np.zeros(2)
    step = (flat.max(0) - low) / 65535 if len(flat) else np.ones(2)
    step[step == 0] = 1.0
    return np.rint((flat - low) / step).astype(np.uint16), low.tolist(), step.tolist()


def _typed(array: np.ndarray) -> dict[str, str]:
    """An array as plotly writes it, little-endian in base64: `{"dtype": "f8", "bdata": …}`."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.str[1:],
        "bdata": base64.b64encode(little.tobytes()).decode(),
    }
