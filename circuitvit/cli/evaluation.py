"""The command that evaluates models side by side: which ones, and what they are called."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from circuitvit.cli.app import app, say, show
from circuitvit.cli.options import Images, takes_images
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
        typer.Option(help="The same as an option; further ones may follow it, or be named alike."),
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
    images: Images,
) -> None:
    """Accuracy, calibration, cost and latency of models side by side, and which to deploy."""
    import circuitvit as cv
    from circuitvit.measure.models.limits import Limits

    limits = Limits(max_latency, min_accuracy, max_parameters)
    if out is not None:
        check_folder_writable(out)
    sources = [*(model_paths or ()), *(models or ())]
    met = [str(folder) for folder in _found_below(auto_find)] if auto_find else []
    every = zip(*_named([*sources, *met], baseline), strict=True)
    named = {name: source for source, name in every}
    chosen = _chosen(named, baseline)
    asked = [*sources] if chosen is None else [*sources, named[chosen]]
    loaded = _loaded(named, met=_places(met) - _places(asked))
    _check_alike({named[name]: model for name, model in loaded.items()})
    first = chosen or _baseline_of(loaded, largest=auto_find is not None)
    ordered = {first: loaded[first], **loaded}
    test, seed = images.splits(loaded[first]).test, images.seed
    names = test.class_names if len(test.class_names) == loaded[first].config.classes else None
    found = cv.evaluate(ordered, test.images, test.labels, class_names=names, seed=seed)
    show(found.table())
    if out is not None:
        say(f"Wrote {found.save(out, **asdict(limits))}: report.json, report.md and figure.html.")
    for line in str(found.advice(**asdict(limits))).splitlines():
        say(line)


def _found_below(folder: Path) -> list[Path]:
    """The folders below that hold a model, in order; hidden ones are left out.

    Raises:
        CircuitError: there is no such folder, or none in it.
    """
    if not readable_path(folder, "folder of models").is_dir():
        raise CircuitError(f"--auto-find is {folder}, which is no folder. Name one with models.")
    below = sorted(path.parent for path in folder.rglob("config.json"))
    seen = [path for path in below if not _is_hidden(path.relative_to(folder))]
    found = [path for path in seen if _is_model(path)]
    if not found:
        raise CircuitError(
            f"no models in {folder} or below. A model's folder holds config.json and "
            "model.safetensors, as train, compile and save_pretrained write them"
            + (f"; {seen[0]} has a config.json, but no weights beside it." if seen else ".")
        )
    return found


def _loaded(named: dict[str, str], *, met: set[str]) -> dict[str, Any]:
    """The models by name; what was only met on the way and can't be loaded is left out, and said.

    Args:
        named: sources by name.
        met: places of those that nobody asked for.

    Raises:
        CircuitError: one that was asked for can't be loaded, or none could.
    """
    from circuitvit.pretrained import load_saved

    loaded, wrong = {}, []
    for name, source in named.items():
        try:
            loaded[name] = load_saved(source)
        except CircuitError as cause:
            if _place(source) not in met:
                raise
            wrong.append(f"left out {source}: {cause}")
    if not loaded:
        raise CircuitError(f"no model could be loaded; {'; '.join(wrong)}")
    for line in wrong:
        say(line, err=True)
    return loaded


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_model(folder: Path) -> bool:
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return False
    return isinstance(read_json(folder / "config.json", what="model config", finite=False), dict)


def _named(sources: Sequence[str], baseline: str | None) -> tuple[list[str], list[str]]:
    """The models, each once, and what they are called: what tells their paths apart.

    Raises:
        CircuitError: there are none, or the baseline is none of them and no model's folder.
    """
    if not sources:
        raise CircuitError(
            "no models were given. Name their folders, or the folder they are in: "
            "circuitvit evaluate MODEL… or circuitvit evaluate --auto-find DIR."
        )
    each = list({_place(source): source for source in sources}.values())
    short = distinguishing(each)
    if baseline is not None and baseline not in short and _place(baseline) not in _places(each):
        if not readable_path(baseline, "baseline").exists() and ":" not in baseline:
            raise CircuitError(
                f"there is no baseline {baseline}: it is no folder, and none of the models "
                f"{', '.join(short)}. Name one of them, or another model's folder."
            )
        each = [baseline, *each]
        short = distinguishing(each)
    return each, short


def _place(source: str) -> str:
    """The same for every way to write a path."""
    return os.path.abspath(source)


def _places(sources: Sequence[str]) -> set[str]:
    return {_place(source) for source in sources}


def _chosen(named: dict[str, str], baseline: str | None) -> str | None:
    """The name of the model that was asked for as the baseline, by its name or its folder."""
    if baseline is None or baseline in named:
        return baseline
    return next(name for name, source in named.items() if _place(source) == _place(baseline))


def distinguishing(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them begin and end with; one alone is its last part."""
    parts = [Path(path).parts or (path,) for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    parts = _without_shared(parts)
    reversed_parts = _without_shared([tuple(reversed(each)) for each in parts])
    return ["/".join(reversed(each)).replace("//", "/") for each in reversed_parts]


def _without_shared(parts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without what all begin with, but for one part at least."""
    shared = 0
    while all(len(each) > shared + 1 for each in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [each[shared:] for each in parts]


def _baseline_of(loaded: dict[str, Any], *, largest: bool) -> str:
    """The name of the baseline where none was asked for: that of most MACs, or the first."""
    from circuitvit.measure import macs

    if not largest:
        return next(iter(loaded))
    shapes = {n: (m.config.channels, *[m.config.image_size] * 2) for n, m in loaded.items()}
    return max(loaded, key=lambda name: macs(loaded[name], shapes[name]))


def _check_alike(loaded: dict[str, Any]) -> None:
    """Refuse models that look at images in different ways: they can't be given the same tensor.

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
                f"{first} and {name} look at images in different ways, {one.preprocessing} and "
                f"{other.preprocessing}. Evaluate them apart, or save one with the other's."
            )
    if wrong:
        raise CircuitError(" ".join(wrong))
