"""Commands about models: demo, inspect, compile, export."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from circuitvit.cli.app import app, say, show
from circuitvit.cli.options import ImageOptions, ModelArgument, takes_images
from circuitvit.errors import CircuitError, warn
from circuitvit.files import (
    check_folder_writable,
    check_writable,
    readable_path,
    writing_folder,
)
from circuitvit.models.saved_model import README, read_card

if TYPE_CHECKING:
    from circuitvit.preprocessing import Preprocessing
    from circuitvit.pretrained import Examination

CARD_ROUNDS = 7
"""Rounds of timing for a card; `evaluate` has more."""

NOISE = ", units ranked on noise images (--data names others)"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws everything.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both trainings.")] = 100,
) -> None:
    """Run all steps on handwritten digits: train, discover, draw, compile, retrain, measure."""
    from circuitvit.demo import demo as run

    result = run(out, seed=seed, epochs=epochs, say=typer.echo)
    show(result.report.table())
    faithful = result.summary["faithfulness"]
    say(
        f"Faithfulness on held-out pairs: ACDC {faithful['acdc']:z.3f}, random circuits of its "
        f"size {faithful['random_median']:z.3f} (median of {len(faithful['random'])})."
    )
    say(f"Wrote {out}: report.md, report.json, circuit.json, graph.html and three models.")


@app.command()
def inspect(
    model: ModelArgument,
    heads: Annotated[
        int | None, typer.Option(help="Heads of each block, which a bare checkpoint lacks.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights to load into the named architecture.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Resample the positions to images of this side.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="ema or model: which of a checkpoint's, where it has both."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Of pixels in [0, 1], one a channel, with commas between.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also save it here, as a folder of circuitvit.")
    ] = None,
) -> None:
    """Show a model's shape, size, edges and preprocessing, and what loading folded."""
    from circuitvit.pretrained import examine

    if out is not None:
        _check_out(out, model)
    loading: Any = {
        "heads": heads, "checkpoint": checkpoint, "image_size": image_size, "weights": weights,
    }  # fmt: skip
    found = examine(model, **loading)
    if mean is not None or std is not None:
        loading["preprocessing"] = _with_statistics(found.vit.preprocessing, mean, std)
        found = examine(model, **loading)
    _describe(found)
    if out is not None:
        found.vit.save_pretrained(out)
        say(f"Wrote {out}.")


def _check_out(out: Path, model: str) -> None:
    """Refuse a folder that can't be written, or that is the model's own."""
    check_folder_writable(out)
    if out.resolve() == readable_path(model, "model").resolve():
        raise CircuitError(f"{out} is the model's own folder, which would be lost. Name another.")


def _describe(found: "Examination") -> None:
    """Print a model's properties, a line each."""
    from circuitvit.graph.edge_graph import edge_count, units_of
    from circuitvit.measure import macs, parameters

    vit, config = found.vit, found.vit.config
    side, preprocessing = config.image_size, vit.preprocessing
    names = None if preprocessing is None else preprocessing.class_names
    size = parameters(vit), macs(vit, (config.channels, side, side))
    edges = {qkv: edge_count(config, qkv) for qkv in ("split", "joint")}
    dtype = str(vit.positions.dtype).removeprefix("torch.")
    rows = [
        ["source", found.source],
        ["images", f"{config.channels} × {side} × {side}, patches of {config.patch_size}"],
        ["classes", f"{config.classes}{_some(names)}"],
        ["tokens", f"{config.tokens}: {config.prefix_tokens} before {config.patches} patches"],
        ["head reads", config.pooling + (", then LayerNorm" if config.fc_norm else "")],
        ["blocks", f"{config.depth}, width {config.width}, {config.activation}"],
        ["heads by block", _runs(config.heads)],
        ["head width by block", _runs(config.head_width)],
        ["MLP width by block", _runs(config.mlp_width)],
        ["parameters", f"{size[0]:,} in {dtype}"],
        ["MACs", f"{size[1]:,} an image"],
        ["units", f"{len(units_of(config)):,}"],
        ["edges", f"{edges['split']:,}; {edges['joint']:,} with q, k, v joint"],
        ["preprocessing", _shown(preprocessing)],
        ["logits", _agreement(found.difference)],
        *[["folded", text] for text in found.folded],
        *[["not used", key] for key in found.unused],
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"{name:{width}}  {text}")


def _agreement(difference: float | None) -> str:
    if difference is None:
        return "of circuitvit's own model: nothing to compare with"
    return f"as the source's, to {difference:z.1g} of the largest on two random images"


def _runs(each: tuple[int, ...]) -> str:
    """One number where all blocks agree, else all of them."""
    return str(each[0]) if len(set(each)) == 1 else ", ".join(map(str, each)) or "none"


def _some(names: tuple[str, ...] | None) -> str:
    if not names:
        return " without names"
    return f": {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"


def _shown(given: "Preprocessing | None") -> str:
    if given is None:
        return "not known: give --mean and --std"
    mean, std = (", ".join(f"{x:z.4g}" for x in each) for each in (given.mean, given.std))
    kept = "" if given.crop == 1 else f", the middle {given.crop:z.1%} of the side"
    return f"{given.interpolation}, {given.resize}{kept}; mean {mean}; std {std}"


def _with_statistics(
    before: "Preprocessing | None", mean: str | None, std: str | None
) -> "Preprocessing":
    """A preprocessing with the mean and std of the options."""
    import circuitvit as cv

    if mean is None or std is None:
        raise CircuitError("--mean and --std are both needed; give both.")
    try:
        numbers = [tuple(map(float, text.split(","))) for text in (mean, std)]
    except ValueError:
        raise CircuitError(
            f"--mean is {mean!r}, --std {std!r}, expected numbers with commas between, such as "
            "0.485,0.456,0.406."
        ) from None
    return replace(before or cv.Preprocessing(), mean=numbers[0], std=numbers[1])


@app.command()
@takes_images
def compile(  # noqa: A001
    *,
    model: ModelArgument,
    circuit: Annotated[Path, typer.Argument(help="A circuit of this model.")],
    out: Annotated[Path, typer.Argument(help="The folder for the smaller model.")],
    ablation: Annotated[
        Literal["zero", "mean"] | None,
        typer.Option(
            help="What removed units write: nothing, or their mean. By default mean for a circuit "
            "found under it, else zero."
        ),
    ] = None,
    level: Annotated[
        Literal["unit", "edge"],
        typer.Option(help="unit: the circuit's heads and MLPs; edge: the very edges."),
    ] = "unit",
    target_latency: Annotated[
        float | None,
        typer.Option(
            help="Drop the units that matter least for their time until this share of it is left."
        ),
    ] = None,
    target_macs: Annotated[float | None, typer.Option(help="The same for MACs.")] = None,
    target_parameters: Annotated[float | None, typer.Option(help="For parameters.")] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Make new random weights, to train from scratch; no card."),
    ] = False,
    card: Annotated[
        bool,
        typer.Option(help="Measure both models on the data's test images and write README.md."),
    ] = True,
    images: ImageOptions,
) -> None:
    """Make the smaller model that computes the circuit, with its model card."""
    import circuitvit as cv
    from circuitvit.compiler import compiled_under, measures_effects
    from circuitvit.measure import macs, parameters

    _check_out(out, model)
    vit, kept = cv.load_vit(model), cv.Circuit.load(circuit)
    under = compiled_under(kept, ablation, fresh=fresh)
    ranked = any(share is not None for share in (target_latency, target_macs, target_parameters))
    seed, needs_images = images.seed, (card and not fresh) or under == "mean"
    splits = images.splits(vit) if needs_images or (ranked and images.data) else None
    small = cast(Any, cv.compile)(
        vit, kept, level=level, ablation=ablation, fresh=fresh, seed=seed,
        reference=splits.train.images if splits and (ranked or under == "mean") else None,
        target_latency=target_latency, target_macs=target_macs, target_parameters=target_parameters,
    )  # fmt: skip
    costs = None if target_latency is None else cv.measure_costs(vit.config)
    report, savings = None, None
    if splits and card and not fresh:
        pair, test = {"dense": vit, "compiled": small}, splits.test
        report = cv.measure(pair, test.images, test.labels, rounds=CARD_ROUNDS, seed=seed)
    with writing_folder(out, owned=_written_before(out)) as beside:
        small.save_pretrained(beside)
        if costs is not None:
            costs.save(beside / "costs.json")
            savings = cv.savings(vit, small, costs)
            savings.save(beside)
        if report is not None and not _keeps_readme(out):
            cv.write_card(
                beside, small, dense=vit, circuit=kept, ablation=under, report=report,
                data=f"{images.source(vit)}, test split",
                command=shlex.join(["circuitvit", *sys.argv[1:]]),
            )  # fmt: skip
    if savings is not None:
        show(savings.table())
    if level == "edge":
        say(small.explain())
    image = vit.config.channels, vit.config.image_size, vit.config.image_size
    saved, heads = 1 - macs(small, image) / macs(vit, image), small.units_kept()[0]
    say(
        f"Wrote {out}: {sum(heads)} of {sum(vit.config.heads)} heads, "
        f"{parameters(small):,} of {parameters(vit):,} parameters, {saved:z.0%} fewer MACs"
        f"{', random weights' if fresh else ''}"
        f"{NOISE if ranked and splits is None and measures_effects(kept) else ''}."
    )


def _written_before(out: Path) -> list[str]:
    """The files of an earlier compiled model in a folder, which are replaced."""
    card = [README] if read_card(out) is not None else []
    return ["model.safetensors", "config.json", "costs.json", "savings.json", "savings.md", *card]


def _keeps_readme(out: Path) -> bool:
    """Whether there is a README that isn't a card of circuitvit; it is kept, with a warning."""
    keeps = (out / README).exists() and read_card(out) is None
    if keeps:
        warn(f"{out / README} is no model card of circuitvit and stays; no card was written.")
    return keeps


@app.command()
@takes_images
def export(
    *,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The file, such as model.onnx or model.pt2.")],
    to: Annotated[
        Literal["onnx", "pt2", "timm", "transformers"] | None,
        typer.Option(help="By default by the file's ending."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of weights and images; by default the model's."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators; by default the exporter's.")
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            help="The file takes bytes [image height width channel] of the model's size, "
            "normalises them, and returns probabilities.",
        ),
    ] = False,
    quantize: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compute in INT8, calibrated on so many training images of the data, such as 256; "
            "its accuracy and latency are then shown beside the model's.",
        ),
    ] = 0,
    images: ImageOptions,
) -> None:
    """Write a model for onnxruntime or torch.export.load, and check that it computes the same."""
    import torch

    import circuitvit as cv
    from circuitvit.pretrained import load_saved

    if to in (None, "onnx", "pt2"):
        check_writable(out)
    else:
        check_folder_writable(out)
    vit = load_saved(model)
    splits = images.splits(vit) if quantize else None
    calibration = None if splits is None else _spread(splits.train.images, quantize)
    cv.export(
        vit, out, to=to, dtype=dtype and getattr(torch, dtype), opset=opset,
        preprocess=preprocess, quantize=calibration,
    )  # fmt: skip
    if splits is None:
        say(f"Wrote {out}: read back, its logits are those of {model}, at any batch size.")
        return
    pair, test = {"model": vit, "INT8": cv.OnnxModel(out)}, splits.test
    show(cv.measure(pair, test.images, test.labels, rounds=CARD_ROUNDS, seed=images.seed).table())
    size = out.stat().st_size / 2**20
    used = min(quantize, len(splits.train))
    say(f"Wrote {out}: {size:z.1f} MiB, calibrated on {used} training images.")


def _spread(images: Any, count: int) -> Any:
    """Some of the images, at even distances, since a folder's images are sorted by class."""
    import torch

    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]
