"""The report of `acdc_against_eap.py`: every figure comes from its results.json."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from study import origins

from circuitvit.charts.chart import AnyFigure, Series, chart
from circuitvit.charts.tables import markdown_table

Results = Mapping[str, Any]
COLORS = {"acdc": "#c2410c", "eap": "#1d4ed8", "random": "#7b8794"}
MARKS = {"blocks": "square", "heads": "circle", "neurons": "diamond"}
WORDS = {"acdc": "ACDC", "eap": "EAP"}
HEADER = [
    "model", "kept", "KL", "top-1 (95%)", "loss", "random: top-1", "above random", "MACs saved",
    "latency", "Pareto",
]  # fmt: skip


def table(results: Results) -> str:
    """All models on test images, as a Markdown table."""
    return markdown_table([HEADER, *(_row(results, name) for name in names_of(results))])


def names_of(results: Results) -> list[str]:
    """All models, those like another too."""
    rows, names = results["parts"]["evaluate"]["result"]["rows"], ["dense"]
    for part in results["parts"]:
        if part.startswith("prune "):
            name = part.removeprefix("prune ")
            names += [name, *(n for n in [f"{name}_recovered"] if n in rows)]
    return names


def evaluated(results: Results, name: str) -> dict[str, Any]:
    """What was measured of a model, or of the first one of which the same stays."""
    return results["parts"]["evaluate"]["result"]["rows"][settled(results, name)]


def settled(results: Results, name: str) -> str:
    """The model itself, or the first one of which the same stays."""
    pruned = _pruning(results, name)
    return (pruned["same_as"] if pruned else None) or name


def _row(results: Results, name: str) -> list[str]:
    row, dense = evaluated(results, name), evaluated(results, "dense")
    kept, rise, pruned = "all", "0", _pruning(results, name)
    front = "yes" if row["pareto"] else "no"
    if pruned is not None:
        same = pruned["same_as"]
        front = front if same is None else f"as {_title(same)}"
        kept = f"{pruned['kept'][pruned['level']]:,} of {total(results, pruned['level']):,}"
        rise = f"{pruned['divergence']:z.3f}"
    control = control_of(results, name)
    low, high = row["interval"]
    return [
        _title(name),
        kept,
        "" if name.endswith("_recovered") else rise,
        f"{row['top1']:z.2%} ({low:z.1%}–{high:z.1%})",
        f"{row['loss']:z.3f}",
        ""
        if control is None
        else "{:z.2%} ({:z.1%}–{:z.1%})".format(control, *spread_of(results, name)),
        "" if control is None else f"{100 * (row['top1_beside_random'] - control):+z.1f}",
        f"{1 - row['macs'] / dense['macs']:z.1%}",
        "{:z.2f} ({:z.2f}–{:z.2f})".format(row["time_ratio"], *row["time_interval"]),
        front,
    ]


def _pruning(results: Results, name: str) -> dict[str, Any] | None:
    part = results["parts"].get(f"prune {name.removesuffix('_recovered')}")
    return None if part is None else part["result"]


def _title(name: str) -> str:
    if name == "dense":
        return name
    method, level, knob, value, *more = name.split("_")
    knob = "τ" if knob == "tau" else knob
    return ", ".join([f"{WORDS[method]} {level} {knob} {value}", *more])


def total(results: Results, level: str) -> int:
    """How many blocks, heads or neurons the dense model has."""
    shape = results["settings"]["shape"]
    each = {"blocks": 1, "heads": shape["heads"], "neurons": shape["mlp_width"]}
    return shape["depth"] * each[level]


def control_of(results: Results, name: str) -> float | None:
    """Median top-1 of random prunings of the same size; None where nothing went, or it recovered."""
    drawn = _drawn(results, name)
    return median(drawn) if drawn else None


def spread_of(results: Results, name: str) -> tuple[float, float]:
    """The least and the highest top-1 of random prunings of the same size, where there are some."""
    drawn = _drawn(results, name)
    return min(drawn), max(drawn)


def _drawn(results: Results, name: str) -> list[float]:
    pruned = _pruning(results, name)
    if pruned is None or name.endswith("_recovered"):
        return []
    level = pruned["level"]
    kept = pruned["kept"][level]
    if kept == total(results, level):
        return []
    return results["parts"][f"random {level}"]["result"][str(kept)]


def compared(results: Results) -> list[str]:
    """One line a level: what each method's prunings keep of the accuracy, and random ones of it.

    Of settings that give the same model one counts.
    """
    rows = results["parts"]["evaluate"]["result"]["rows"]
    lines = []
    for level in results["settings"]["levels"]:
        said = []
        for method, word in WORDS.items():
            own = {
                settled(results, n)
                for n in names_of(results)
                if n.startswith(f"{method}_{level}_") and _drawn(results, n)
            }
            top1 = {n: rows[n]["top1_beside_random"] for n in own}
            gains = [top1[n] - median(_drawn(results, n)) for n in own]
            if gains:
                best = sum(top1[n] >= spread_of(results, n)[1] for n in own)
                said.append(
                    f"{word} above the median of random prunings in {sum(g > 0 for g in gains)} of "
                    f"{len(own)} models ({100 * min(gains):+z.1f} to {100 * max(gains):+z.1f} "
                    f"points), no random one above it in {best}"
                )
        lines.append(f"* {level}: " + ("; ".join(said) or "nothing was removed") + ".")
    return lines


def report(results: Results) -> str:
    """The whole report as Markdown."""
    parts, settings = results["parts"], results["settings"]
    found = parts["evaluate"]["result"]
    chosen = parts["choose"]["result"]
    search = settings["eap"][settings["loss"]]
    lines = [
        "# ACDC against EAP",
        origins(results),
        f"{parts['evaluate']['date']}. The dense model learned for {settings['recipe']['epochs']} epochs, {settings['share_of_schedule']:z.0%} of "
        f"the full schedule. {seconds(results)}.",
        f"{found['images']:,} test images; latency is that of a batch of {found['batch']} as a "
        "share of the dense model's; KL is the rise over the dense model on the "
        f"{settings['analysis_batches'] * settings['analysis_batch']} training images that were "
        f"searched on. EAP: {search['method']} with {search['metric']}. Removed parts give their "
        f"{settings['ablation']}. Random: median (least–most) of {settings['random_prunings']} different "
        "prunings of the same size, or of all there are, drawn from all parts of the level, on "
        f"{min(settings['random_images'], found['images']):,} of the test images; `above random` "
        "is in points, on these images. No model was trained after pruning"
        + (", but those marked as recovered." if settings["recovery"]["epochs"] else "."),
        table(results),
        "\n".join(compared(results)),
        f"Chosen on validation images, before any test image was looked at: {_title(chosen['name'])}, "
        f"the fewest MACs among those that lose at most {100 * settings['give']:zg} points of top-1 "
        f"there ({chosen['validation_top1']:z.2%}); on test images "
        f"{evaluated(results, chosen['name'])['top1']:z.2%}.",
        "Pareto set (top-1 against latency), the quickest first: "
        + ", ".join(_title(name) for name in found["pareto"])
        + ". More in `evaluation/report.md`, which has advice from test images.",
    ]
    return "\n\n".join(lines) + "\n"


def seconds(results: Results) -> str:
    """How long each stage took."""
    spent: dict[str, float] = {}
    for part in results["parts"].values():
        spent[part["stage"]] = spent.get(part["stage"], 0) + part["seconds"]
    return "; ".join(f"{stage} took {value:z,.0f} s" for stage, value in spent.items())


def tradeoff(results: Results) -> AnyFigure:
    """Test accuracy against MACs: a mark for each level, a colour for each method and for random."""
    rows = results["parts"]["evaluate"]["result"]["rows"]
    series = []  # models that are alike are drawn once
    for level in results["settings"]["levels"]:
        for method, word in {**WORDS, "random": "random"}.items():
            kind = ("acdc", "eap") if method == "random" else (method,)
            names = [n for n in rows if n.startswith(tuple(f"{k}_{level}_" for k in kind))]
            series.append(_series(results, level, method, f"{word} {level}", names))
    return chart(
        [item for item in series if item.x],
        title="Accuracy left after pruning",
        subtitle="test images, 95% intervals; random: the median of prunings of the same size, the "
        "least and the most, on fewer images; nothing was trained after pruning",
        reading="Each mark is the model after one pruning; better ones lie further up and left. Compare "
        "it with random prunings of the same size, which lie straight above or below it.",
        x_title="MACs, as a share of the dense model's",
        y_title="top-1",
        level=rows["dense"]["top1"],
        level_name="dense",
    )


def _series(results: Results, level: str, method: str, word: str, names: list[str]) -> Series:
    rows = results["parts"]["evaluate"]["result"]["rows"]
    random = method == "random"
    names = [name for name in names if not name.endswith("_recovered")]
    if random:
        names = [name for name in names if _drawn(results, name)]
    names = sorted(names, key=lambda name: rows[name]["macs"])
    top1 = [median(_drawn(results, n)) if random else rows[n]["top1"] for n in names]
    ends = [spread_of(results, n) if random else rows[n]["interval"] for n in names]
    return Series(
        name=word,
        x=[rows[name]["macs"] / rows["dense"]["macs"] for name in names],
        y=top1,
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        color=COLORS[method],
        mark="dots",
        symbol=MARKS[level] + ("-open" if random else ""),
        hover=[("as many as " if random else "") + _title(name) for name in names],
    )
