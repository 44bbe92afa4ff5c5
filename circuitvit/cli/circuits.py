"""Commands about circuits: discover, class-circuits, draw."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from circuitvit.cli.app import app, say, show
from circuitvit.cli.options import ImageOptions, ModelArgument, takes_images
from circuitvit.errors import CircuitError
from circuitvit.files import check_folder_writable, check_writable

OnlyRight = Annotated[
    bool, typer.Option("--only-right", help="Draw only images that the model gets right.")
]


@app.command()
@takes_images
def discover(
    *,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The circuit's file, such as circuit.json.")],
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
    ablation: Annotated[Literal["patch", "zero", "mean"], typer.Option()] = "patch",
    level: Annotated[str, typer.Option(help="edge, node or block.")] = "edge",
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of clean and corrupt images; 64, or all there are."),
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Class of the clean images.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="Class of the corrupt images.")] = None,
    only_right: OnlyRight = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="A file for the search's state, to resume from if it is there (acdc)."),
    ] = None,
    images: ImageOptions,
) -> None:
    """Find a model's circuit on training images (of all classes, or --clean) and save it."""
    import circuitvit as cv

    _check_method(method, tau, edges, resume)
    for path in (out, *([resume] if resume else [])):
        check_writable(path)
    vit = cv.load_vit(model)
    train, seed = images.splits(vit).train, images.seed
    chosen = cv.Pairs.by_class(
        train, clean=clean, corrupt=corrupt, count=pairs, seed=seed,
        right_for=vit if only_right else None,
    )  # fmt: skip
    common: Any = {"ablation": ablation, "level": level, "reference": train.images}
    if metric is not None:
        common["metric"] = metric
    if method == "acdc":
        tau = 0.01 if tau is None else tau
        try:
            circuit = cv.acdc(vit, chosen, tau=tau, resume=resume, **common)
        except KeyboardInterrupt:
            again = f"the same command resumes from {resume}" if resume else "nothing was kept"
            say(f"circuitvit: interrupted; {again}.", err=True)
            raise typer.Exit(130) from None
    else:
        scores = cv.eap(vit, chosen, method=method, seed=seed, **common)
        circuit = scores.top(max(1, len(scores) // 10) if edges is None else edges)
    circuit.save(out)
    say(f"Wrote {out}: {circuit!r} with {len(circuit.units())} units on a path.")
    if not circuit.units():
        say("No unit is on a path to the logits: try a smaller --tau, or more --edges.")


def _check_method(method: str, tau: float | None, edges: int | None, resume: Path | None) -> None:
    """Refuse options of `discover` that its method doesn't have."""
    from circuitvit.discover import METHODS

    if method not in ("acdc", *METHODS):
        raise CircuitError(f"method is {method!r}, expected one of {('acdc', *METHODS)}.")
    if method == "acdc" and edges is not None:
        raise CircuitError("--edges is for scores, not for acdc, whose size --tau decides.")
    if method != "acdc" and tau is not None:
        raise CircuitError(f"--tau is for acdc; with {method} give --edges, how many to keep.")
    if method != "acdc" and resume is not None:
        raise CircuitError(f"--resume is for acdc, not for {method}. Leave it out.")


@app.command()
@takes_images
def class_circuits(
    *,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The folder for the circuits and their overlap.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="This class against all others; once for each. All by default."),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option(help="Clean images of this class only, against those of the next --corrupt."),
    ] = None,
    corrupt: Annotated[
        list[str] | None, typer.Option(help="Corrupt images of this class; one for each --clean.")
    ] = None,
    tau: Annotated[float, typer.Option(help="What one edge may cost.")] = 0.01,
    ablation: Annotated[Literal["patch", "zero", "mean"], typer.Option()] = "patch",
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of images for each circuit; 64, or all there are."),
    ] = None,
    only_right: OnlyRight = False,
    images: ImageOptions,
) -> None:
    """Find a circuit for each class (or class pair), and show how far they overlap.

    An interrupted run resumes where it stopped; further classes are added to the folder.
    """
    import circuitvit as cv

    check_folder_writable(out)
    wanted = _wanted(only or [], clean or [], corrupt or [])
    vit = cv.load_vit(model)
    train = images.splits(vit).train
    cv.class_circuits(
        vit, train, classes=wanted, tau=tau, ablation=ablation, count=pairs,
        reference=train.images, seed=images.seed, resume=out,
        right_for=vit if only_right else None,
    )  # fmt: skip
    found = cv.ClassCircuits.load(out)  # with what earlier runs have found
    found.overlap().save(out)
    show(found.overlap().table())
    say(f"Wrote {out}: {len(found)} circuits, overlap.json, overlap.md and overlap.html.")


def _wanted(only: list[str], clean: list[str], corrupt: list[str]) -> list[Any] | None:
    """Classes and pairs of classes; None for all classes."""
    if len(clean) != len(corrupt):
        raise CircuitError(
            f"--clean is given {len(clean)} times and --corrupt {len(corrupt)} times: a pair of "
            "classes is one of each, such as --clean cat --corrupt dog. One class against all "
            "others is --only cat."
        )
    return [*only, *zip(clean, corrupt, strict=True)] or None


@app.command()
def draw(
    circuit: Annotated[Path, typer.Argument(help="A circuit's file.")],
    out: Annotated[Path, typer.Argument(help="The page to write, such as circuit.html.")],
    title: Annotated[str | None, typer.Option(help="The page's heading.")] = None,
) -> None:
    """Draw a circuit as an interactive page that works offline."""
    import circuitvit as cv

    check_writable(out)
    cv.Circuit.load(circuit).to_html(out, title=title)
    say(f"Wrote {out}.")
