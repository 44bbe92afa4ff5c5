"""The command that evaluates models side by side, and how it finds and names them."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from circuitvit.cli.app import app, say, show
from circuitvit.cli.options import ImageOptions, takes_images
from circuitvit.errors import CircuitError
from circuitvit.files import check_folder_writable, read_json, readable_path

WEIGHTS = ("*.safetensors", "*.bin")


@app.command()
@takes_images
def evaluate(
    *,
    models: Annotated[
        list[str] | None, typer.Argument(help="Model folders; the first is the baseline.")
    ] = None,
    model_paths: Annotated[
        list[str] | None,
        typer.Option(help="The same as an option; it can be repeated, and folders can follow it."),
    ] = None,
    auto_find: Annotated[
        Path | None,
        typer.Option(
            help="Every model folder below this one; the baseline is the one of most MACs."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The model that others are compared with; added if it isn't among them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--output-dir", help="Also write report.json, report.md, figure.html."
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(help="Advise models of at most so many milliseconds a batch of 64 only."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Likewise of at least this top-1, 0 to 1.")
    ] = None,
    max_parameters: Annotated[
        float | None, typer.Option(help="Likewise of at most so many parameters, such as 1e6.")
    ] = None,
    images: ImageOptions,
) -> None:
    """Accuracy, calibration, cost and latency of models side by side, and which to deploy."""
    import circuitvit as cv
    from circuitvit.measure.models.advice import Limits

    limits = Limits(max_latency, min_accuracy, max_parameters)
    if out is not None:
        check_folder_writable(out)
    sources = [*(model_paths or ()), *(models or ())]
    below = [str(folder) for folder in _model_folders(auto_find)] if auto_find else []
    each, names = _named([*sources, *below], baseline)
    named = dict(zip(names, each, strict=True))
    chosen = _chosen(named, baseline)
    given = sources if chosen is None else [*sources, named[chosen]]
    loaded = _loaded(named, optional=_absolute(below) - _absolute(given))
    _check_alike({named[name]: model for name, model in loaded.items()})
    first = chosen or _baseline_of(loaded, largest=auto_find is not None)
    ordered = {first: loaded[first], **loaded}
    test, seed = images.splits(loaded[first]).test, images.seed
    classes = test.class_names if len(test.class_names) == loaded[first].config.classes else None
    result = cv.evaluate(ordered, test.images, test.labels, class_names=classes, seed=seed)
    show(result.table())
    if out is not None:
        say(f"Wrote {result.save(out, **asdict(limits))}: report.json, report.md and figure.html.")
    for line in str(result.advice(**asdict(limits))).splitlines():
        say(line)


def _model_folders(folder: Path) -> list[Path]:
    """The model folders at or below a folder, sorted; hidden ones are left out.

    Raises:
        CircuitError: there is no such folder, or no model in it.
    """
    if not readable_path(folder, "folder of models").is_dir():
        raise CircuitError(f"--auto-find is {folder}, which is no folder. Name one with models.")
    configs = sorted(folder.rglob("config.json"))
    shown = [
        path.parent
        for path in configs
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    models = [path for path in shown if _is_model(path)]
    if not models:
        raise CircuitError(
            f"no models in {folder} or below. A model's folder holds config.json and "
            "model.safetensors, as train, compile and save_pretrained write them"
            + (f"; {shown[0]} has a config.json, but no weights beside it." if shown else ".")
        )
    return models


def _loaded(named: dict[str, str], *, optional: set[str]) -> dict[str, Any]:
    """The models by name; optional ones that can't be loaded are left out with a message.

    Args:
        named: sources by name.
        optional: absolute paths of those that were found by `--auto-find` alone.

    Raises:
        CircuitError: one that isn't optional can't be loaded, or none could.
    """
    from circuitvit.pretrained import load_saved

    loaded, wrong = {}, []
    for name, source in named.items():
        try:
            loaded[name] = load_saved(source)
        except CircuitError as cause:
            if os.path.abspath(source) not in optional:
                raise
            wrong.append(f"left out {source}: {cause}")
    if not loaded:
        raise CircuitError(f"no model could be loaded; {'; '.join(wrong)}")
    for line in wrong:
        say(line, err=True)
    return loaded


def _is_model(folder: Path) -> bool:
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return False
    return isinstance(read_json(folder / "config.json", what="model config", finite=False), dict)


def _named(sources: Sequence[str], baseline: str | None) -> tuple[list[str], list[str]]:
    """The sources without repetitions, and their names: the parts in which the paths differ.

    Raises:
        CircuitError: there are none, or the baseline is none of them and no model's folder.
    """
    if not sources:
        raise CircuitError(
            "no models were given. Name their folders, or the folder they are in: "
            "circuitvit evaluate MODEL… or circuitvit evaluate --auto-find DIR."
        )
    each = list({os.path.abspath(source): source for source in sources}.values())
    short = distinguishing(each)
    if not (baseline is None or baseline in short or _absolute([baseline]) <= _absolute(each)):
        if not readable_path(baseline, "baseline").exists() and ":" not in baseline:
            raise CircuitError(
                f"there is no baseline {baseline}: it is no folder, and none of the models "
                f"{', '.join(short)}. Name one of them, or another model's folder."
            )
        each = [baseline, *each]
        short = distinguishing(each)
    return each, short


def _absolute(sources: Sequence[str]) -> set[str]:
    return set(map(os.path.abspath, sources))


def _chosen(named: dict[str, str], baseline: str | None) -> str | None:
    """The name of the given baseline, which is a name or a folder."""
    if baseline is None or baseline in named:
        return baseline
    return next(n for n, source in named.items() if _absolute([source]) == _absolute([baseline]))


def distinguishing(paths: Sequence[str]) -> list[str]:
    """Paths without their common first and last folders; a single path is its last part."""
    parts = [Path(path).parts or (path,) for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    parts = _without_shared(parts)
    reversed_parts = _without_shared([tuple(reversed(each)) for each in parts])
    return ["/".join(reversed(each)).replace("//", "/") for each in reversed_parts]


def _without_shared(parts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the parts that all begin with; one part at least is left."""
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [each[shared:] for each in parts]


def _baseline_of(loaded: dict[str, Any], *, largest: bool) -> str:
    """The name of the default baseline: the model with most MACs, or the first."""
    from circuitvit.measure import macs

    if not largest:
        return next(iter(loaded))
    shapes = {n: (m.config.channels, *[m.config.image_size] * 2) for n, m in loaded.items()}
    return max(loaded, key=lambda name: macs(loaded[name], shapes[name]))


def _check_alike(loaded: dict[str, Any]) -> None:
    """Refuse models that can't take the same tensor of images.

    Raises:
        CircuitError: their sizes, channels, classes or preprocessing differ; all such are named.
    """
    (first, one), *others = loaded.items()
    wrong = []
    for name, other in others:
        sizes = [(m.config.image_size, m.config.channels, m.config.classes) for m in (one, other)]
        if sizes[0] != sizes[1]:
            wrong.append(
                f"{first} and {name} can't be given the same images: image size, channels and "
                f"classes are {sizes[0]} and {sizes[1]}. Evaluate them apart."
            )
        elif one.preprocessing != other.preprocessing and None not in (
            one.preprocessing, other.preprocessing,
        ):  # fmt: skip
            wrong.append(
                f"{first} and {name} have different preprocessing, {one.preprocessing} and "
                f"{other.preprocessing}. Evaluate them apart, or save one with the other's."
            )
    if wrong:
        raise CircuitError(" ".join(wrong))
