"""The tables of `edge_recovery.py`, all from its `results.json`; not an experiment itself."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from study import STAGES, origins

from circuitvit.charts.tables import markdown_table

KINDS = ("baseline", "better")
PUBLISHED = {"edges": 518, "removed": 81, "top1": [0.3625, 0.33, 0.3607], "seconds": [61.3, 58.1]}
WHY = """\
`seconds` are those of all test images at the largest batch, as the timed batches predict.
`all edges` is the dense model as the compiler lowers it: nothing is removed, but the last block's
queries and its MLP run for the class token alone, so what it saves is no merit of a circuit.

In a dense block all heads read one stream, by one LayerNorm and one product of matrices. An edge
that goes takes no product away: it gives its reader a sum of its own, with its own LayerNorm and
its own smaller product. A product disappears when a head or an MLP has lost every way from the
images or to the logits. So a model that really computes a circuit of most edges takes more steps
than the dense one, each of them smaller, and only one of few edges takes fewer. A run with masked
edges computes all products, whatever the mask; the published 5% come without an interval, and we
can't say what they measure.
What is left here:"""


def table(results: Mapping[str, Any], kind: str) -> str:
    """All models of a kind, on test images."""
    found = results["parts"][f"evaluation of {kind}"]["result"]["rows"]
    sizes = results["parts"][f"circuits of {kind}"]["result"]
    drawn = results["parts"][f"random circuits of {kind}"]["result"]
    header = ["model", "edges", "top-1 (95%)", "change, points", "loss", "parameters", "MACs"]
    rows = [[*header, "seconds", "time ÷ dense's (95%)", "Pareto"]]
    for name, row in found.items():
        share = name.split(":")[0]
        low, high = row["interval"]
        rows.append([
            name, str(sizes.get(share, sizes["all edges"])["edges"]),
            f"{row['top1']:z.2%} ({low:z.1%}–{high:z.1%})", points(*row["change"]),
            f"{row['loss']:z.3f}", f"{row['parameters']:,}", f"{row['macs'] / 1e6:z.3g} M",
            f"{row['seconds']:z.1f}",
            "{:z.2f} ({:z.2f}–{:z.2f})".format(row["time_ratio"], *row["time_interval"]),
            "yes" if row["pareto"] else "no",
        ])  # fmt: skip
        if share in drawn and name.endswith("pruned"):
            tops, loss = ([one[key] for one in drawn[share]] for key in ("top1", "loss"))
            spread = f"{mean(tops):z.2%} ({min(tops):z.1%}–{max(tops):z.1%})"
            change = points(mean(tops) - found["dense"]["top1"])
            label = f"{share}: {len(tops)} random, pruned"
            size = str(sizes[share]["edges"])
            rows.append([label, size, spread, change, f"{mean(loss):z.3f}", *["–"] * 5])
    return markdown_table(rows)


def points(change: float, low: float | None = None, high: float | None = None) -> str:
    """A change of accuracy in percentage points."""
    interval = "" if low is None or high is None else f" ({100 * low:+z.1f} to {100 * high:+z.1f})"
    return f"{100 * change:+z.2f}{interval}"


def changes(results: Mapping[str, Any]) -> str:
    """What pruning took and recovery gave back, beside the published figures."""
    first, pruned, after = PUBLISHED["top1"]
    before, later = PUBLISHED["seconds"]
    header = ["", "edges gone", "dense", "by pruning", "by recovery", "with distillation"]
    controls = ["random: by pruning", "random: by recovery", "dense, trained on"]
    rows = [
        [*header, *controls, "time ÷ dense's"],
        ["published, 200 classes", f"{PUBLISHED['removed']} of {PUBLISHED['edges']}",
         f"{first:z.2%}", points(pruned - first), points(after - pruned), *["–"] * 4,
         f"{later / before:z.2f}"],
    ]  # fmt: skip
    for kind in KINDS:
        found = results["parts"][f"evaluation of {kind}"]["result"]["rows"]
        sizes = results["parts"][f"circuits of {kind}"]["result"]
        drawn = results["parts"][f"random circuits of {kind}"]["result"]
        top1 = {name: row["top1"] for name, row in found.items()}
        for share in results["settings"]["keep"]:
            size, start = sizes[share], top1[f"{share}: pruned"]
            gone = size["of"] - size["edges"]
            won = [points(top1[f"{share}: {word}"] - start) for word in ("recovered", "distilled")]
            lost = [one["top1"] - top1["dense"] for one in drawn[share]]
            back = [
                top1[f"{share}: random {draw}, recovered"] - one["top1"]
                for draw, one in enumerate(drawn[share])
            ]
            rows.append([
                f"{kind}, {gone / size['of']:z.0%} gone", f"{gone} of {size['of']}",
                f"{top1['dense']:z.2%}", points(start - top1["dense"]), *won,
                *(points(mean(some), min(some), max(some)) for some in (lost, back)),
                points(top1["dense, trained on"] - top1["dense"]),
                f"{found[f'{share}: recovered']['time_ratio']:z.2f}",
            ])  # fmt: skip
    return markdown_table(rows)


def report(results: Mapping[str, Any]) -> str:
    """All that was found, as Markdown; every figure is of `results.json`."""
    settings, parts = results["settings"], results["parts"]
    minutes = {
        stage: sum(p["seconds"] for p in parts.values() if p["stage"] == stage) / 60
        for stage in STAGES
    }
    dates = sorted({part["date"] for part in parts.values()})
    spent = ", ".join(f"{stage} {spent:z.1f} min" for stage, spent in minutes.items())
    lines = [
        "# Edges removed, and recovered",
        origins(results),
        f"{' to '.join(dates[:1] + dates[1:][-1:])}; {spent}.",
        f"The images are of `{settings['set']}`, not the 200 classes of Tiny-ImageNet of the "
        f"published figures, and {settings['epochs']} epochs were run (better: "
        f"{settings['epochs'] * settings['better_epochs']}), {settings['share_of_schedule']:z.0%} "
        "of the full schedule. So compare the changes. Points are of top-1 on test images; those by "
        "recovery and distillation are counted from the pruned model, those of random circuits are "
        f"the mean of {settings['random_circuits']} (least to most):",
        changes(results),
    ]
    for kind in KINDS:
        lines += [f"## The {kind} model", table(results, kind), *about(parts, kind)]
    return (
        "\n\n".join([*lines, "## Why this time, and not the published one", WHY, *spent_on(parts)])
        + "\n"
    )


def spent_on(parts: Mapping[str, Any]) -> list[str]:
    """What the circuits of each share have left, and the time it takes."""
    lines = []
    for kind in KINDS:
        rows = parts[f"evaluation of {kind}"]["result"]["rows"]
        sizes = parts[f"circuits of {kind}"]["result"]
        for name, size in sizes.items():
            row = rows.get(f"{name}: pruned", rows["all edges"])
            lines.append(
                f"- {kind}, {name}: {size['units']} of {sizes['all edges']['units']} units, "
                f"{size['layer_norms']} LayerNorms where all edges have "
                f"{sizes['all edges']['layer_norms']}, "
                f"{row['macs'] / rows['dense']['macs']:z.0%} of the dense model's MACs, "
                f"{row['time_ratio']:z.0%} of its time"
            )
    return ["\n".join(lines)]


def about(parts: Mapping[str, Any], kind: str) -> list[str]:
    """What the circuits of a kind are like, and which model to take."""
    found = parts[f"evaluation of {kind}"]["result"]
    sizes = parts[f"circuits of {kind}"]["result"]
    rows = [["circuit", "edges", "units", "LayerNorms", "τ", "validation top-1, pruned"]]
    for name, size in sizes.items():
        tau = "–" if size["tau"] is None else f"{size['tau']:z.2g}"
        numbers = [str(size[key]) for key in ("edges", "units", "layer_norms")]
        rows.append([name, *numbers, tau, f"{size['validation_accuracy']:z.2%}"])
    advice = "\n".join(found["advice"]).replace("<", "&lt;")
    front = ", ".join(found["pareto"])
    return [markdown_table(rows), f"Pareto set, the quickest first: {front}.\n\n{advice}"]
