"""The command line: each command is a thin layer over the public names."""

import shlex
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from circuitvit.errors import CircuitError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Find the circuit inside a Vision Transformer and compile it into a smaller one.",
    epilog="Start with 'circuitvit demo', or: train, discover, compile, evaluate, draw, export.",
)

Data = Annotated[
    str,
    typer.Option(
        help="'digits', a folder of images, a parquet file or a folder of them, or a hub id."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws everything that is random.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many images a split.")]
Model = Annotated[Path, typer.Argument(help="A folder that 'train' or 'compile' wrote.")]


class Ablation(StrEnum):
    """What removed edges carry."""

    patch = "patch"
    zero = "zero"
    mean = "mean"


class CompileLevel(StrEnum):
    """What `compile` keeps."""

    unit = "unit"
    edge = "edge"


class Constant(StrEnum):
    """What removed units write in a compiled model."""

    zero = "zero"
    mean = "mean"


class ExportFormat(StrEnum):
    """Which file `export` writes."""

    onnx = "onnx"
    pt2 = "pt2"


class Precision(StrEnum):
    """In which dtype `export` writes weights."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


CARD_ROUNDS = 7
"""How often `compile` times the models for the card; `evaluate` does it more often."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("runs/demo"),
    seed: Seed = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both trainings.")] = 100,
) -> None:
    """The main job on handwritten digits: train, discover, draw, compile, retrain, measure."""
    from circuitvit.demo import demo as run

    result = run(out, seed=seed, epochs=epochs, say=typer.echo)
    _show(result.report)
    faithful = result.summary["faithfulness"]
    typer.echo(
        f"Faithfulness on held-out pairs: ACDC {faithful['acdc']:.3f}, random circuits of its size "
        f"{faithful['random_median']:.3f} (median of {len(faithful['random'])})."
    )
    typer.echo(f"Wrote {out}: report.md, report.json, circuit.json, graph.html and three models.")


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="The folder for the model and its checkpoint.")],
    data: Data = "digits",
    patch_size: Annotated[int, typer.Option(help="Side of a patch, in pixels.")] = 2,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this side.")] = None,
    width: Annotated[int, typer.Option(help="Width of the residual stream.")] = 64,
    depth: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Heads in each block.")] = 4,
    mlp_width: Annotated[int, typer.Option(help="Neurons of each MLP.")] = 128,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Train a ViT from scratch; an interrupted run goes on where it stopped."""
    import circuitvit as cv
    from circuitvit.measure import accuracy

    splits = cv.load_splits(data, image_size=image_size, limit=limit, seed=seed)
    shape = splits.train.images.shape
    config = cv.ViTConfig(
        image_size=shape[2],
        channels=shape[1],
        classes=len(splits.train.class_names),
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
    )
    recipe = cv.Recipe(epochs=epochs, learning_rate=learning_rate, batch=batch, seed=seed)
    vit = cv.ViT(config, seed=seed)
    trained = cv.train(vit, splits.train, splits.validation, recipe, folder=out).vit
    trained.save_pretrained(out)
    found = accuracy(trained, splits.test.images, splits.test.labels)
    typer.echo(f"Wrote {out}. Test accuracy {found.top1:.2%} ({found.images} images).")


@app.command()
def discover(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The circuit's file, such as circuit.json.")],
    data: Data = "digits",
    method: Annotated[
        str,
        typer.Option(
            help="acdc, eap, eap-ig-inputs, eap-ig-activations, clean-corrupted, gim, relp, exact "
            "or random."
        ),
    ] = "acdc",
    tau: Annotated[
        float | None, typer.Option(help="What one edge may cost (acdc; 0.01 by default).")
    ] = None,
    edges: Annotated[
        int | None, typer.Option(help="How many edges to keep (not acdc; a tenth by default).")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="kl (default of acdc), logit_difference (default of the others), cross_entropy, "
            "probability or accuracy."
        ),
    ] = None,
    ablation: Annotated[Ablation, typer.Option()] = Ablation.patch,
    level: Annotated[str, typer.Option(help="edge, node or block.")] = "edge",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of clean and corrupt images.")] = 64,
    clean: Annotated[str | None, typer.Option(help="Class of the clean images.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="Class of the corrupt images.")] = None,
    limit: Limit = None,
    seed: Seed = 0,
    resume: Annotated[
        Path | None,
        typer.Option(help="A file to note the search in, and to go on from if it is there (acdc)."),
    ] = None,
) -> None:
    """Find a model's circuit on training images (of all classes, or --clean) and save it."""
    import circuitvit as cv

    _check_method(method, tau, edges, resume)
    vit = cv.load_vit(model)
    images = _splits_for(vit, data, limit, seed).train
    chosen = cv.Pairs.by_class(images, clean=clean, corrupt=corrupt, count=pairs, seed=seed)
    common: Any = {"ablation": ablation.value, "level": level, "reference": images.images}
    if metric is not None:
        common["metric"] = metric
    if method == "acdc":
        tau = 0.01 if tau is None else tau
        try:
            circuit = cv.acdc(vit, chosen, tau=tau, resume=resume, **common)
        except KeyboardInterrupt:
            again = f"the same command goes on from {resume}" if resume else "nothing was kept"
            typer.echo(f"circuitvit: interrupted; {again}.", err=True)
            raise typer.Exit(130) from None
    else:
        scores = cv.eap(vit, chosen, method=method, seed=seed, **common)
        circuit = scores.top(max(1, len(scores) // 10) if edges is None else edges)
    circuit.save(out)
    typer.echo(f"Wrote {out}: {circuit!r} with {len(circuit.units())} units on a path.")
    if not circuit.units():
        typer.echo("No unit is on a path to the logits: try a smaller --tau, or more --edges.")


def _check_method(method: str, tau: float | None, edges: int | None, resume: Path | None) -> None:
    """Refuse options of `discover` that its method can't heed."""
    from circuitvit.discover import METHODS

    if method not in ("acdc", *METHODS):
        raise CircuitError(f"method is {method!r}, expected one of {('acdc', *METHODS)}.")
    if method == "acdc" and edges is not None:
        raise CircuitError("--edges goes with scores, not with acdc, whose --tau decides.")
    if method != "acdc" and tau is not None:
        raise CircuitError(f"--tau goes with acdc; for {method} say how many --edges to keep.")
    if method != "acdc" and resume is not None:
        raise CircuitError(f"--resume goes with acdc, not with {method}. Leave it out.")


@app.command()
def compile(  # noqa: A001
    model: Model,
    circuit: Annotated[Path, typer.Argument(help="A circuit of this model.")],
    out: Annotated[Path, typer.Argument(help="The folder for the smaller model.")],
    ablation: Annotated[
        Constant, typer.Option(help="What removed units write: nothing, or their mean.")
    ] = Constant.zero,
    level: Annotated[
        CompileLevel,
        typer.Option(help="unit: the circuit's heads and MLPs; edge: the very edges."),
    ] = CompileLevel.unit,
    target_latency: Annotated[
        float | None,
        typer.Option(help="Drop the units that score least until this share of the time is left."),
    ] = None,
    target_macs: Annotated[float | None, typer.Option(help="The same for MACs.")] = None,
    target_parameters: Annotated[float | None, typer.Option(help="For parameters.")] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Give new random weights, to train from scratch; no card."),
    ] = False,
    data: Data = "digits",
    limit: Limit = None,
    seed: Seed = 0,
    card: Annotated[
        bool,
        typer.Option(help="Measure both models on the data's test images and write README.md."),
    ] = True,
) -> None:
    """Make the smaller model that computes the circuit, with its model card."""
    import circuitvit as cv
    from circuitvit.measure import macs, parameters

    if out.resolve() == Path(model).resolve():
        raise CircuitError(f"{out} is the model's own folder, which would be lost. Name another.")
    vit, kept = cv.load_vit(model), cv.Circuit.load(circuit)
    needs_images = (card and not fresh) or ablation is Constant.mean
    splits = _splits_for(vit, data, limit, seed) if needs_images else None
    reference = splits.train.images if splits and ablation is Constant.mean else None
    measures = level is CompileLevel.unit and 0 < (target_latency or 0) <= 1
    costs = cv.measure_costs(vit.config) if measures else None
    make: Any = cv.compile
    small = make(
        vit, kept, level=level.value, ablation=ablation.value, reference=reference, fresh=fresh,
        seed=seed, target_latency=target_latency, target_macs=target_macs,
        target_parameters=target_parameters, costs=costs,
    )  # fmt: skip
    small.save_pretrained(out)
    report = None
    if splits and card and not fresh:
        pair, test = {"dense": vit, "compiled": small}, splits.test
        report = cv.measure(pair, test.images, test.labels, rounds=CARD_ROUNDS, seed=seed)
    for stale in ("costs.json", "savings.json", "savings.md"):  # of a model compiled before
        (out / stale).unlink(missing_ok=True)
    if costs is not None:
        costs.save(out / "costs.json")
        savings = cv.savings(vit, small, costs)
        savings.save(out)
        _show(savings)
    if report is not None:
        cv.write_card(
            out, small, dense=vit, circuit=kept, ablation=ablation.value, report=report,
            data=f"{data}, test split", command=shlex.join(["circuitvit", *sys.argv[1:]]),
        )  # fmt: skip
    if level is CompileLevel.edge:
        typer.echo(small.explain())
    image = vit.config.channels, vit.config.image_size, vit.config.image_size
    saved = 1 - macs(small, image) / macs(vit, image)
    heads, _ = small.units_kept()
    typer.echo(
        f"Wrote {out}: {sum(heads)} of {sum(vit.config.heads)} heads, "
        f"{parameters(small):,} of {parameters(vit):,} parameters, {saved:.0%} fewer MACs"
        f"{', random weights' if fresh else ''}."
    )


@app.command()
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Model folders; the first is the baseline.")],
    data: Data = "digits",
    out: Annotated[
        Path | None, typer.Option(help="Also write report.json and report.md here.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Accuracy, parameters, MACs and latency of models on test images, side by side."""
    import circuitvit as cv
    from circuitvit.pretrained import load_saved

    loaded = {str(path): load_saved(path) for path in models}
    test = _splits_for(next(iter(loaded.values())), data, limit, seed).test
    report = cv.measure(loaded, test.images, test.labels, seed=seed)
    _show(report)
    if out is not None:
        typer.echo(f"Wrote {report.save(out)}: report.json and report.md.")


@app.command()
def draw(
    circuit: Annotated[Path, typer.Argument(help="A circuit's file.")],
    out: Annotated[Path, typer.Argument(help="The page to write, such as circuit.html.")],
    title: Annotated[str | None, typer.Option(help="The page's heading.")] = None,
) -> None:
    """Draw a circuit as an interactive page that works offline."""
    import circuitvit as cv

    cv.Circuit.load(circuit).to_html(out, title=title)
    typer.echo(f"Wrote {out}.")


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The file, such as model.onnx or model.pt2.")],
    to: Annotated[
        ExportFormat | None, typer.Option(help="By default what the file's ending says.")
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="Of weights and images; by default the model's.")
    ] = None,
) -> None:
    """Write a model for onnxruntime or torch.export.load, and check that it computes the same."""
    import torch

    import circuitvit as cv
    from circuitvit.pretrained import load_saved

    precision = None if dtype is None else getattr(torch, dtype.value)
    cv.export(load_saved(model), out, to=None if to is None else to.value, dtype=precision)
    typer.echo(f"Wrote {out}: read back, its logits are those of {model}, at any batch size.")


def _splits_for(vit: Any, data: str, limit: int | None, seed: int) -> Any:
    import circuitvit as cv

    config = vit.config
    splits = cv.load_splits(
        data, image_size=config.image_size, channels=config.channels, limit=limit, seed=seed
    )
    classes = len(splits.train.class_names)
    if classes != config.classes:
        raise CircuitError(
            f"this model has {config.classes} classes, the data {data!r} have {classes}. "
            "Name the data that it was trained on with --data."
        )
    return splits


def _show(report: Any) -> None:
    """Print the table; what stands in brackets goes below its number, to fit 80 columns."""
    header, *rows = report.table()
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for index, name in enumerate(header):
        justify = "right" if index else "left"
        table.add_column(name.replace(", ", "\n"), justify=justify, no_wrap=index > 0)
    for cells in rows:
        table.add_row(cells[0], *(cell.replace(" (", "\n(") for cell in cells[1:]))
    Console().print(table)


def _one_line(message: Warning | str, *_: Any) -> None:
    typer.echo(f"circuitvit: warning: {message}", err=True)


def main() -> None:
    """Run a command; what the user can mend is one clear line and exit code 2."""
    warnings.showwarning = _one_line
    try:
        app()
    except CircuitError as error:
        typer.echo(f"circuitvit: {error}", err=True)
        sys.exit(2)
