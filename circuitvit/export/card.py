"""The model card of a compiled model: what it is, from which circuit, and what was measured.

Nothing is said that wasn't computed here or handed in; what was not measured is said to be so.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn

from circuitvit.charts.tables import markdown_table
from circuitvit.errors import CircuitError, in_short
from circuitvit.escaping import markdown_lines, markdown_text
from circuitvit.files import write_text
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import edge_count
from circuitvit.measure import Report, macs, parameters
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.history import Step, told_in_line
from circuitvit.models.saved_model import FINGERPRINT, README
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import in_default_modes
from circuitvit.train import Recipe

TAGS = ["circuit-discovery", "image-classification", "pruning", "vision-transformer"]
NAMED = 20
"""Classes that a card names."""
REMOVED = {
    "zero": "What was removed writes nothing",
    "mean": "What was removed writes its mean over reference images, folded into constants",
}


@in_default_modes
def write_card(
    folder: str | os.PathLike[str],
    model: ViT | CircuitViT,
    *,
    dense: ViT,
    circuit: Circuit,
    ablation: str,
    report: Report | None = None,
    row: str = "compiled",
    data: str | None = None,
    command: str | None = None,
    license: str | None = None,  # noqa: A002
) -> Path:
    """Write the model card (README.md) of a compiled model into the folder that it was saved in.

    Args:
        folder: of the model.
        model: the compiled model.
        dense: what it was compiled from.
        circuit: what it was compiled to.
        ablation: what removed units write: `zero` or `mean`.
        report: dense and compiled model side by side; other rows are left out. Without it, the
            card says that accuracy and latency were not measured.
        row: the compiled model's name in the report, whose baseline is the dense one.
        data: which images the report is about, in words, such as `digits, test split`.
        command: what made the model, as typed.
        license: of the weights, as the hub names it (`apache-2.0`); by default none is named.

    Returns:
        The path of the card.

    Raises:
        CircuitError: the report is about other models, or the card can't be written.
    """
    _check(model, dense, ablation, report, row, license)
    parts = [
        _front_matter(model, license),
        f"# {markdown_text(Path(folder).resolve().name)}",
        _summary(model, ablation),
        _shape(model, dense),
        _origin(dense, circuit, ablation),
        *_history(model),
        _figures(report, row, data),
        _command(command),
    ]
    return write_text(Path(folder) / README, "\n\n".join(parts) + "\n")


def _check(
    model: ViT | CircuitViT, dense: ViT, ablation: str, report: Report | None, row: str,
    license: str | None,  # noqa: A002
) -> None:  # fmt: skip
    if ablation not in REMOVED:
        raise CircuitError(f"ablation is {ablation!r}, expected one of {tuple(REMOVED)}.")
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", license, re.ASCII):
        raise CircuitError(
            f"license is {in_short(license, most=60)}, expected its name on the hub, such as "
            "'apache-2.0'."
        )
    if report is None:
        return
    names = [item.name for item in report.rows]
    for name, measured in ((report.baseline, dense), (row, model)):
        if name not in names:
            raise CircuitError(
                f"the report has no row {name!r}, only {names}. Name the compiled model's with "
                "row=..., or leave the report out."
            )
        found = (report[name].parameters, report[name].macs)
        if found != (parameters(measured), _macs(measured)):
            raise CircuitError(
                f"the report's row {name!r} is about another model: it has {found[0]:,} parameters "
                f"and {found[1]:,} MACs, this one {parameters(measured):,} and "
                f"{_macs(measured):,}. Measure these models."
            )


def _macs(model: nn.Module) -> int:
    config: Any = model.config
    return macs(model, (config.channels, config.image_size, config.image_size))


def _front_matter(model: ViT | CircuitViT, license: str | None) -> str:  # noqa: A002
    named: dict[str, Any] = {FINGERPRINT: model.fingerprint()}
    data = ModelCardData(
        library_name="circuitvit",
        license=license,
        pipeline_tag="image-classification",
        tags=TAGS,
        **named,
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(model: ViT | CircuitViT, ablation: str) -> str:
    config = model.config
    side, patch = config.image_size, config.patch_size
    holds = "the attention heads and MLPs that a circuit keeps"
    if isinstance(model, CircuitViT):
        holds = "the very edges that a circuit keeps"
    return (
        f"A Vision Transformer for images of {config.channels} × {side} × {side} (patches of "
        f"{patch} × {patch}) and {config.classes} classes, made smaller: of a dense model it holds "
        f"{holds}. {REMOVED[ablation]}. It is a plain "
        "PyTorch module that needs no masks and no hooks.\n\n"
        "```python\nimport circuitvit as cv\n\n"
        f'vit = cv.{type(model).__name__}.from_pretrained("this folder, or its name on the hub")\n'
        'print(vit.predict("picture.png"))  # paths, PIL images, uint8 arrays\n'
        "```\n\n"
        "`vit(images)` gives the logits [image class] of normalised images [image channel height "
        f"width]. {_seen(model)}"
    )


def _seen(model: ViT | CircuitViT) -> str:
    """The preprocessing of `predict`, and the classes."""
    seen, side = model.preprocessing, model.config.image_size
    if seen is None:
        return (
            "How its images were normalised is not known: `predict` takes a mean and deviation of "
            "0.5, until `vit.preprocessing` says otherwise."
        )
    mean, std = (", ".join(f"{x:z.4g}" for x in values) for values in (seen.mean, seen.std))
    whole = seen.resized_side(side)
    short = "the short side" if seen.resize == "shortest" else "both sides"
    names = seen.class_names or ()
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    classes = f" Classes: {', '.join(map(markdown_text, names[:NAMED]))}{more}." if names else ""
    return (
        f"`predict` resizes {short} to {whole} pixels ({seen.interpolation}), cuts out the middle "
        f"{side} × {side}, scales pixels to 0–1 and normalises them (mean {mean}; deviation {std})."
        f"{classes}"
    )


def _shape(model: ViT | CircuitViT, dense: ViT) -> str:
    new, old, (heads, neurons) = model.config, dense.config, model.units_kept()
    rows = [
        ["parameters", f"{parameters(model):,}", f"{parameters(dense):,}"],
        ["MACs for one image", f"{_macs(model):,}", f"{_macs(dense):,}"],
        ["attention heads", f"{sum(heads):,}", f"{sum(old.heads):,}"],
        ["MLP neurons", f"{sum(neurons):,}", f"{sum(old.mlp_width):,}"],
    ]
    blocks = [
        [str(block), f"{heads[block]} of {old.heads[block]}", f"{neurons[block]} of {width}"]
        for block, width in enumerate(old.mlp_width)
    ]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    facts = (
        f"Width of the residual stream {new.width}, {new.depth} blocks, {new.tokens} tokens, "
        f"{new.pooling} pooling, weights in {dtype}."
    )
    return "\n\n".join(
        [
            "## What it is",
            markdown_table([["", "this model", "dense model"], *rows]),
            facts,
            markdown_table([["block", "heads", "MLP neurons"], *blocks]),
        ]
    )


def _origin(dense: ViT, circuit: Circuit, ablation: str) -> str:
    """The circuit's provenance, as far as it is recorded."""
    origin, total = circuit.provenance, edge_count(circuit.config, circuit.qkv)
    source = dense.fingerprint()
    rows = [
        ["edges", f"{len(circuit):,} of {total:,}"],
        ["heads and MLPs on a kept path", f"{len(circuit.units()):,}"],
        ["found by", origin.method],
        ["selection", origin.selection],
        ["level", origin.level],
        ["threshold τ", origin.tau],
        ["metric", origin.metric],
        ["ablation in the search", origin.ablation],
        ["ablation as compiled", ablation],
        ["image pairs", origin.images],
        ["divergence on them", origin.divergence],
        ["seed", origin.seed],
        ["fingerprint of the dense model", source],
        ["found on the weights", origin.model],
        ["fingerprint of the image pairs", origin.data],
        ["fingerprint of the reference images", origin.reference],
        ["versions", ", ".join(f"{name} {v}" for name, v in origin.versions.items())],
    ]
    known = [[name, _told(value)] for name, value in rows if value not in (None, "")]
    text = "## From which circuit\n\n" + markdown_table([["", ""], *known])
    if origin.model not in (None, source):
        text += "\n\nThe circuit was found on **other weights** than those that were compiled."
    return text


def _history(model: ViT | CircuitViT) -> list[str]:
    """The model's history from its `config.json`; nothing if there is none."""
    if not model.history:
        return []
    rows = [
        [str(number), step.act, step.model or "", _how(step), f"circuitvit {step.version}"]
        for number, step in enumerate(model.history, 1)
    ]
    header = ["", "what was done", "to the model", "how", "by"]
    return [
        "## What was done to it\n\n"
        + markdown_table([header, *rows])
        + "\n\nModels are named by their fingerprints. Of a recipe it says what differs from "
        "`cv.Recipe()`; `vit.history` tells all of it."
    ]


def _how(step: Step) -> str:
    """The settings of a step; of a recipe, those that differ from the defaults."""
    details = dict(step.details)
    if isinstance(recipe := details.get("recipe"), Mapping):
        usual = Recipe().as_dict()
        changed = {name: n for name, n in recipe.items() if name not in usual or n != usual[name]}
        details["recipe"] = changed or "as by default"
    return told_in_line(details)


def _figures(report: Report | None, row: str, data: str | None) -> str:
    head = "## What was measured\n\n"
    if report is None:
        return head + "Accuracy and latency were not measured."
    pair = replace(report, rows=(report[report.baseline], report[row]))
    lines = [f"On these images: {markdown_text(data)}." if data else "", pair.markdown().rstrip()]
    batches = sorted(report.null)
    if batches:
        times = [
            f"{markdown_text(item.name)} "
            + ", ".join(f"{item.latency[batch].median_ms:z.3g}" for batch in batches)
            for item in pair.rows
        ]
        sizes = ", ".join(map(str, batches))
        lines.append(f"Median milliseconds for a batch of {sizes}: {'; '.join(times)}.")
    else:
        lines.append("Latency was not measured.")
    return head + "\n\n".join(line for line in lines if line)


def _command(command: str | None) -> str:
    if command is None:
        return "## Made by\n\nThe command that made it is not known."
    return f"## Made by\n\n{markdown_lines(command)}"


def _told(value: object) -> str:
    return f"{value:z.4g}" if isinstance(value, float) else str(value)
