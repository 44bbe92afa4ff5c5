"""Six panels about classifiers side by side. Knows neither circuits nor torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitvit.charts.chart import GREY, GRID, PANELS, AnyFigure, frame
from circuitvit.charts.heatmap import SCALE
from circuitvit.charts.theme import INK
from circuitvit.escaping import escape

COLORS = (
    "#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#a61e4d", "#1c7ed6",
    "#e8a100", "#795548", "#f783ac", "#66a80f", "#343a40", "#15aabf",
)  # fmt: skip
MACS_COLOR = "#a9d3da"
LONGEST = 26
NAMED_CLASSES = 20
"""With more classes than these there is no room for their names."""
WRITTEN_CELLS = 60
NAMED_DOTS = 8
"""With more models than these the legend names the dots."""
GAP = 118
"""Between two rows of panels, in pixels: a title, and the axis of the row above."""

ABOVE = 30
"""For the titles of the first two panels, in pixels."""
TOP = 60
"""Above the panels of a page, in pixels."""

_SIZES = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True)
class Panelled:
    """One model's data for the panels; shares and confidences are in 0–1.

    Attributes:
        name: shown literally.
        accuracy: top-1, and the ends of its interval.
        cost: time or operations, along the axis of the second panel.
        on_front: whether no other model dominates it.
        calibration_error: beside its name in the legend.
        reliability: confidence, accuracy and images by bin; empty bins left out.
        per_class: accuracy by class; None for one without images.
        right: mean confidence when right; None if it never is.
        wrong: mean confidence when wrong.
        parameters: their number.
        macs: for one image.
    """

    name: str
    accuracy: tuple[float, float, float]
    cost: float
    on_front: bool
    calibration_error: float
    reliability: Sequence[tuple[float, float, int]]
    per_class: Sequence[float | None]
    right: float | None
    wrong: float | None
    parameters: int
    macs: int


def panels(
    models: Sequence[Panelled],
    *,
    baseline: str,
    class_names: Sequence[str],
    cost_title: str,
    subtitle: str,
) -> AnyFigure:
    """Draw accuracy, accuracy against cost, calibration, classes, confidence and size.

    Args:
        models: at least one, drawn from above in this order.
        baseline: the model whose size is 100%.
        class_names: in the order of `per_class`.
        cost_title: what `cost` is.
        subtitle: a smaller line below the heading.
    """
    # plotly takes longer to import than all the rest
    from plotly.subplots import make_subplots

    from circuitvit.charts.saved_figure import Figure as Drawn

    count = len(models)
    heights = [max(300, 60 + 26 * count)] * 3
    total = sum(heights) + 2 * GAP
    titles = [
        "Accuracy", "Accuracy against cost; ringed: Pareto set",
        "Accuracy by class", "Calibration: a perfect model lies on the diagonal",
        "Confidence when right (full) and wrong (hollow)",
        f"Parameters (dark) and MACs (light); {_short(baseline)} = 100%",
    ]  # fmt: skip
    drawn: Any = make_subplots(
        rows=3, cols=2, subplot_titles=[escape(title) for title in titles],
        row_heights=heights, vertical_spacing=GAP / total, horizontal_spacing=0.085,
    )  # fmt: skip
    longest = max(len(_short(model.name)) for model in models)
    lines = 1 + sum(len(_short(model.name)) + 16 for model in models) // 110
    drawn.update_layout(**_layout(subtitle, total, 30 + 7 * longest, 100 + 22 * lines))
    style = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GREY, "ticks": "outside"}
    drawn.update_xaxes(**style, showline=True).update_yaxes(**style)
    drawn.update_annotations(font={"size": 14, "color": INK}, yshift=8)
    names = [escape(_short(model.name)) for model in models]
    for row, col in ((1, 1), (2, 1), (3, 1), (3, 2)):
        drawn.update_yaxes(
            row=row, col=col, tickvals=list(range(count)), ticktext=names,
            range=[count - 0.5, -0.5], showgrid=False, ticks="", zeroline=False,
        )  # fmt: skip
    drawn.update_yaxes(row=3, col=2, showticklabels=False)
    for traces, row, col in (
        (_accuracy(models), 1, 1), (_against_cost(models), 1, 2),
        (_classes(models, class_names), 2, 1), (_calibration(models), 2, 2),
        (_confidence(models), 3, 1), (_sizes(models, baseline), 3, 2),
    ):  # fmt: skip
        for trace in traces:
            drawn.add_trace(Drawn([trace]).data[0], row=row, col=col)
    _set_axes(drawn, models, class_names, cost_title)
    return Drawn(drawn)


def _set_axes(
    drawn: Any, models: Sequence[Panelled], class_names: Sequence[str], cost_title: str
) -> None:
    """Say what the panels' axes show, and over which range."""
    share, from_zero = {"tickformat": ".0%"}, {"rangemode": "tozero"}
    drawn.update_xaxes(row=1, col=1, title_text="top-1, with 95% intervals", **share, **from_zero)
    drawn.update_xaxes(row=1, col=2, title_text=escape(cost_title), **_cost_axis(models))
    drawn.update_yaxes(row=1, col=2, title_text="top-1", **share)
    drawn.update_xaxes(row=2, col=1, **_class_axis(class_names))
    drawn.update_xaxes(row=2, col=2, title_text="confidence", range=[0, 1.02], **share)
    drawn.update_yaxes(row=2, col=2, title_text="share that is right", range=[-0.02, 1.02], **share)
    drawn.update_xaxes(row=3, col=1, title_text="mean confidence", range=[0, 1.02], **share)
    drawn.update_xaxes(row=3, col=2, title_text="share of the baseline's", **share, **from_zero)


def _accuracy(models: Sequence[Panelled]) -> list[dict[str, Any]]:
    values = [model.accuracy for model in models]
    bars = {
        "type": "bar", "orientation": "h", "showlegend": False,
        "width": min(0.66, 0.2 * len(models)),
        "y": list(range(len(models))), "x": [value for value, _, _ in values],
        "marker": {"color": [_color(place) for place in range(len(models))]},
        "text": [f"{value:z.1%}" for value, _, _ in values], "textposition": "inside",
        "insidetextanchor": "start", "insidetextfont": {"color": "#ffffff"},
        "customdata": [escape(model.name) for model in models],
        "hovertemplate": "%{customdata}: %{x:.2%}<extra></extra>",
        "error_x": {
            "type": "data", "symmetric": False, "color": INK, "thickness": 1.4, "width": 4,
            "array": [high - value for value, _, high in values],
            "arrayminus": [value - low for value, low, _ in values],
        },
    }  # fmt: skip
    return [bars]


def _against_cost(models: Sequence[Panelled]) -> list[dict[str, Any]]:
    front = sorted((m for m in models if m.on_front), key=lambda model: model.cost)
    line = {
        "type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip",
        "x": [model.cost for model in front], "y": [model.accuracy[0] for model in front],
        "line": {"color": GREY, "dash": "dash", "width": 1.5, "shape": "hv"},
    }  # fmt: skip
    few = len(models) <= NAMED_DOTS
    dots = [
        {
            "type": "scatter", "mode": "markers+text" if few else "markers",
            "legendgroup": str(place), "showlegend": False,
            "x": [model.cost], "y": [model.accuracy[0]],
            "text": [f"\u2002{escape(_short(model.name))}\u2002"],
            "textposition": "middle left",  # the dashed line leaves to the right
            "textfont": {"size": 11}, "cliponaxis": False,
            "marker": {
                "color": _color(place), "size": 12,
                "line": {"color": INK, "width": 2.5 if model.on_front else 0},
            },
            "error_y": {
                "type": "data", "symmetric": False, "color": _color(place), "thickness": 1,
                "width": 3, "array": [model.accuracy[2] - model.accuracy[0]],
                "arrayminus": [model.accuracy[0] - model.accuracy[1]],
            },
            "hovertemplate": f"{escape(model.name)}<br>%{{y:.2%}} at %{{x:.4g}}<extra></extra>",
        }
        for place, model in enumerate(models)
    ]  # fmt: skip
    return [line, *dots]


def _classes(models: Sequence[Panelled], class_names: Sequence[str]) -> list[dict[str, Any]]:
    order = _class_order(models, len(class_names))
    cells = [[model.per_class[place] for place in order] for model in models]
    trace: dict[str, Any] = {
        "type": "heatmap", "z": cells, "zmin": 0, "zmax": 1, "colorscale": SCALE,
        "y": list(range(len(models))),
        "customdata": [[escape(class_names[place]) for place in order]] * len(models),
        "text": [[escape(model.name)] * len(order) for model in models],
        "hovertemplate": "%{text}<br>%{customdata}: %{z:.1%}<extra></extra>",
        "showscale": False,
    }  # fmt: skip
    if len(order) <= NAMED_CLASSES:
        trace |= {"xgap": 2, "ygap": 2}
    if len(order) <= NAMED_CLASSES and len(order) * len(models) <= 2 * WRITTEN_CELLS:
        small = len(order) * len(models) > WRITTEN_CELLS
        trace |= {"texttemplate": "%{z:.0%}", "textfont": {"size": 9 if small else 10}}
    return [trace]


def _class_order(models: Sequence[Panelled], classes: int) -> list[int]:
    """As they are while they have names; else the easiest for all models first."""
    if classes <= NAMED_CLASSES:
        return list(range(classes))
    mean = [sum(model.per_class[place] or 0.0 for model in models) for place in range(classes)]
    return sorted(range(classes), key=lambda place: -mean[place])


def _class_axis(class_names: Sequence[str]) -> dict[str, Any]:
    if len(class_names) <= NAMED_CLASSES:
        shown = [escape(_short(name, 14)) for name in class_names]
        turned = -40 if sum(map(len, class_names)) > 40 else 0
        return {"tickvals": list(range(len(shown))), "ticktext": shown, "tickangle": turned,
                "showgrid": False, "tickfont": {"size": 11}, "title_text": "light 0%, dark 100%",
                "title_standoff": 4}  # fmt: skip
    text = f"{len(class_names)} classes, the easiest first; light 0%, dark 100%"
    return {"showticklabels": False, "showgrid": False, "ticks": "", "title_text": text}


def _calibration(models: Sequence[Panelled]) -> list[dict[str, Any]]:
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "showlegend": False,
        "hoverinfo": "skip", "line": {"color": GREY, "dash": "dash", "width": 1},
    }  # fmt: skip
    traces: list[dict[str, Any]] = [diagonal]
    for place, model in enumerate(models):
        images = sum(item[2] for item in model.reliability)
        sizes = [4 + 10 * (item[2] / images) ** 0.5 for item in model.reliability]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "legendgroup": str(place),
            "name": f"{escape(_short(model.name))}, ECE {model.calibration_error:z.3f}",
            "x": [item[0] for item in model.reliability],
            "y": [item[1] for item in model.reliability],
            "customdata": [item[2] for item in model.reliability], "opacity": 0.85,
            "marker": {"color": _color(place), "size": sizes, "line": {"width": 0}},
            "line": {"color": _color(place), "width": 1.5},
            "hovertemplate": f"{escape(model.name)}<br>%{{y:.1%}} right of %{{customdata:,}} "
            "images that are %{x:.1%} sure<extra></extra>",
        })  # fmt: skip
    return traces


def _confidence(models: Sequence[Panelled]) -> list[dict[str, Any]]:
    traces = []
    for place, model in enumerate(models):
        color = _color(place)
        ends = [(model.wrong, "#ffffff"), (model.right, color)]
        known = [(value, fill) for value, fill in ends if value is not None]
        traces.append({
            "type": "scatter", "mode": "lines+markers", "showlegend": False,
            "x": [value for value, _ in known], "y": [place] * len(known),
            "line": {"color": color, "width": 2},
            "marker": {"size": 11, "color": [fill for _, fill in known],
                       "line": {"color": color, "width": 2}},
            "hovertemplate": f"{escape(model.name)}: %{{x:.1%}} sure<extra></extra>",
        })  # fmt: skip
    return traces


def _sizes(models: Sequence[Panelled], baseline: str) -> list[dict[str, Any]]:
    base = next(model for model in models if model.name == baseline)
    traces = []
    kinds = (("parameters", COLORS[0], -0.19), ("MACs", MACS_COLOR, 0.19))
    for kind, color, shift in kinds:
        counts = [m.parameters if kind == "parameters" else m.macs for m in models]
        whole = base.parameters if kind == "parameters" else base.macs
        traces.append({
            "type": "bar", "orientation": "h", "showlegend": False, "width": 0.36,
            "x": [count / (whole or 1) for count in counts],
            "y": [place + shift for place in range(len(models))],
            "marker": {"color": color}, "text": [_count(count) for count in counts],
            "textposition": "auto", "textfont": {"size": 11}, "textangle": 0,
            "insidetextanchor": "start", "constraintext": "none",
            "customdata": [escape(model.name) for model in models],
            "hovertemplate": f"%{{customdata}}: %{{text}} {kind}, %{{x:.1%}}<extra></extra>",
        })  # fmt: skip
    return traces


def _cost_axis(models: Sequence[Panelled]) -> dict[str, Any]:
    """Costs that differ tenfold are drawn on a log axis."""
    costs = [model.cost for model in models]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        return {"type": "log", "dtick": "D2", "tickformat": "~g"}
    span, room = max(costs) - min(costs), 0.45 if len(models) <= NAMED_DOTS else 0.15
    return {"range": [min(costs) - room * span, max(costs) + 0.15 * span]} if span else {}


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _short(name: str, longest: int = LONGEST) -> str:
    """A name with its middle cut out: the ends distinguish models of one family."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[: longest - 1 - half]}…{name[-half:]}"


def _count(number: int) -> str:
    return next((f"{number / n:z.3g} {unit}" for n, unit in _SIZES if number >= n), str(number))


def _layout(subtitle: str, total: int, left: int, bottom: int) -> dict[str, Any]:
    height = total + TOP + bottom
    basis = frame(
        "Models side by side", subtitle, PANELS, above=ABOVE, least_width=760, least_height=height
    )
    top = basis["margin"]["t"]
    return {
        **basis,
        "font": {**basis["font"], "size": 12},
        "barmode": "overlay",
        "legend": {"orientation": "h", "x": 0, "y": -70 / total, "yanchor": "top"},
        "margin": {"l": left, "r": 28, "t": top, "b": bottom},
        "height": total + top + bottom,
    }  # fmt: skip
