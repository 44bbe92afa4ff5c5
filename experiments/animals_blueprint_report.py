"""The report and page of `animals_blueprint.py`, all from its `results.json`."""

from collections.abc import Mapping
from typing import Any

from study import origins

from circuitvit.charts.chart import frame
from circuitvit.charts.tables import markdown_table

RANDOM = "random blueprint"
PUBLISHED = "41 of 48 heads gone at τ=0.01, all MLPs kept; 55.24% retrained"


def report(results: Mapping[str, Any]) -> str:
    """The report for people; all figures are those of `results.json`."""
    settings, found = results["settings"], part_of(results)
    share, epochs = settings["share_of_schedule"], settings["recipe"]["epochs"]
    lines = [
        "# A blueprint from a circuit",
        "",
        origins(results),
        "",
        f"{seconds(results) / 60:z.0f} minutes, {found('test', 'date')}. {epochs} epochs, {share:z.0%} of "
        f"the full schedule. Published: {PUBLISHED}.",
        "",
        f"τ={found('choice')['tau']:zg} was chosen on validation images: the best as compiled of "
        f"those that save {settings['least_saving']:z.0%} of the MACs. Test images were used for "
        "this table only:",
        "",
        table(results),
        "",
        control(results),
        "",
        "Every τ, as compiled, on validation images:",
        "",
        trials_table(results),
    ]
    return "\n".join(lines) + "\n"


def part_of(results: Mapping[str, Any]) -> Any:
    """A function from a part's name to its result, or another field of it."""
    return lambda name, field="result": results["parts"][name][field]


def seconds(results: Mapping[str, Any]) -> float:
    """How long all parts took."""
    return sum(part["seconds"] for part in results["parts"].values())


def table(results: Mapping[str, Any]) -> str:
    """What came of the chosen τ, on test images."""
    rows = results["parts"]["test"]["result"]
    head = ["model", "heads", "MLPs", "top-1 (95%)", "loss", "params", "MACs", "time, batch 64"]
    shape = results["settings"]["shape"]
    whole = {"heads": shape["depth"] * shape["heads"], "mlps": shape["depth"]}
    kept = results["parts"]["choice"]["result"]
    cells = []
    for row in rows:
        units = whole if row["name"] == "baseline" else kept
        cells.append([row["name"], str(units["heads"]), str(units["mlps"]), *figures(row)])
    return markdown_table([head, *cells])


def control(results: Mapping[str, Any]) -> str:
    """How much the random shapes can tell."""
    drawn = drawn_in(results)
    return (
        f"The control is {drawn} random shape{'s' * (drawn != 1)} of as many heads and MLPs. Every "
        "model was trained once: the intervals are of the test images, and hold no spread over "
        "trainings."
    )


def drawn_in(results: Mapping[str, Any]) -> int:
    """How many random blueprints were evaluated."""
    rows = results["parts"]["test"]["result"]
    return sum(row["name"].startswith(RANDOM) for row in rows)


def figures(row: Mapping[str, Any]) -> list[str]:
    """Accuracy, loss, size and time of one model."""
    low, high = row["interval"]
    return [
        f"{row['top1']:z.2%} ({low:z.1%}–{high:z.1%})",
        f"{row['loss']:z.3f}",
        f"{row['parameters'] / 1e6:z.3g} M",
        f"{row['macs'] / 1e6:z.3g} M",
        f"{row['time_ratio']:z.2f}",
    ]


def trials_table(results: Mapping[str, Any]) -> str:
    """What every τ leaves."""
    found = part_of(results)
    speeds = found("speeds")
    cells = []
    for tau in results["settings"]["taus"]:
        trial = found(f"τ={tau:zg}")
        end = ["–"] * 3
        if trial["compiled"]:
            end = [
                f"{trial['validation_top1']:z.2%}",
                f"{-trial['macs_saved']:z.0%}",
                f"{1 / speeds[f'{tau:zg}']['ratio']:z.2f} ×",
            ]
        cells.append([f"{tau:zg}", *(str(trial[k]) for k in ("edges", "heads", "mlps")), *end])
    head = ["τ", "edges", "heads", "MLPs", "top-1", "MACs", "speed-up"]
    return markdown_table([head, *cells])


def figure(results: Mapping[str, Any]) -> Any:
    """Accuracy and speed-up over τ, and against each other with τ beside each point."""
    from plotly.subplots import make_subplots

    found, speeds = part_of(results), part_of(results)("speeds")
    trials = [found(f"τ={tau:zg}") for tau in results["settings"]["taus"]]
    trials = [trial for trial in trials if trial["compiled"]]
    taus = [trial["tau"] for trial in trials]
    top1 = [100 * trial["validation_top1"] for trial in trials]
    faster = [1 / speeds[f"{tau:zg}"]["ratio"] for tau in taus]
    titles = ("top-1 of the compiled circuit", "speed-up, batch 64", "the one against the other")
    drawn = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    drawn.add_scatter(x=taus, y=top1, mode="lines+markers", row=1, col=1)
    drawn.add_scatter(x=taus, y=faster, mode="lines+markers", row=1, col=2)
    drawn.add_scatter(
        x=faster, y=top1, text=[f"τ={tau:zg}" for tau in taus],
        mode="markers+text", textposition="middle right", cliponaxis=False, row=1, col=3,
    )  # fmt: skip
    for column in (1, 2):
        drawn.update_xaxes(type="log", title="τ", row=1, col=column)
    drawn.update_xaxes(title="speed-up", row=1, col=3)
    for column in (1, 3):
        drawn.update_yaxes(title="validation top-1, %", row=1, col=column)
    basis = frame(
        "Accuracy and speed-up over τ",
        "circuits compiled to their units; validation images",
        "Each dot is the model after ACDC with one τ; with a larger τ more is removed. Better models "
        "lie further up and right in the last panel.",
        above=30,
        least_width=760,
    )
    return drawn.update_layout(**basis, showlegend=False)
