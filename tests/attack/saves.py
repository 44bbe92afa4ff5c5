"""Everything that `save` can write: an old and a new one of a kind, and what a place then holds."""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attack import specimens as own
from attack.specimens import plain

import circuitvit as cv
from circuitvit.files import writing_folder

OLD, NEW = 0, 1
TEXTS = {".md", ".html"}
DRAWN_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What plotly calls the place of a figure: another name each time."""


@dataclasses.dataclass(frozen=True)
class Save:
    """A kind of thing that is saved.

    Attributes:
        name: of the file or folder.
        write: saves the one that a number names, at a path, from what `prepare` made.
        load: reads it.
        folder: whether it is a folder, in which files of others may lie.
    """

    name: str
    write: Callable[[int, Path, Path], Any]
    load: Callable[[Path], Any]
    folder: bool = True


def _any_model(path: Path) -> Any:
    try:
        return cv.ViT.from_pretrained(path)
    except cv.CircuitError:
        return cv.CircuitViT.from_pretrained(path)


def _mixed(number: int, path: Path, _: Path) -> None:
    (own.vit(0) if number == OLD else own.small(1)).save_pretrained(path)


def _carded(number: int, path: Path, made: Path) -> None:
    dense = own.vit(number)
    circuit = own.circuit(number)
    small: Any = cv.compile(dense, circuit)
    with writing_folder(path, owned=("model.safetensors", "config.json", "README.md")) as beside:
        small.save_pretrained(beside)  # as `circuitvit compile` does it
        cv.write_card(
            beside, small, dense=dense, circuit=circuit, ablation="zero",
            report=None, data=f"data {number}",
        )  # fmt: skip


def _adapter(number: int, path: Path, made: Path) -> None:
    adapter = cv.Adapter.load(made / "adapter.safetensors")
    if number == NEW:
        adapter = dataclasses.replace(
            adapter, class_names=own.NAMES[::-1],
            weights={name: torch.flip(w, (0,)) for name, w in adapter.weights.items()},
        )  # fmt: skip
    adapter.save(path)


def _savings(number: int, path: Path, made: Path) -> None:
    cv.savings(own.vit(), own.circuit(number), cv.Costs.load(made / "costs.json")).save(path)


def _page(number: int, path: Path, _: Path) -> None:
    own.circuit(number).to_html(path / "circuit.html", title=str(number), plotlyjs="directory")


def _drawn(path: Path) -> list[Any]:
    return [len((path / "plotly.min.js").read_bytes())]


def _classes(number: int, path: Path, _: Path) -> None:
    own.class_circuits(number, classes=[0, 1] if number == OLD else [2, 3]).save(path)


def _classes_held(path: Path) -> Any:
    found = cv.ClassCircuits.load(path)
    return [dict(found), dict(found.settings), cv.Overlap.load(path)]


SAVES: dict[str, Save] = {
    "model": Save("model", lambda n, p, _: own.vit(n).save_pretrained(p), cv.load_vit),
    "circuit model over model": Save("model", _mixed, _any_model),
    "compiled model with card": Save("small", _carded, cv.load_vit),
    "timm folder": Save("timm", lambda n, p, _: cv.export(own.vit(n), p, to="timm"), cv.load_vit),
    "transformers folder": Save(
        "hf", lambda n, p, _: cv.export(own.vit(n), p, to="transformers"), cv.load_vit
    ),
    "adapter": Save("adapter.safetensors", _adapter, cv.Adapter.load, folder=False),
    "circuit": Save(
        "circuit.json", lambda n, p, _: own.circuit(n).save(p), cv.Circuit.load, folder=False
    ),
    "class circuits": Save("classes", _classes, _classes_held),
    "overlap": Save("overlap", lambda n, p, _: own.overlap(n).save(p), cv.Overlap.load),
    "report": Save(
        "report", lambda n, p, made: cv.Report.load(made / f"report{n}").save(p), cv.Report.load
    ),
    "evaluation": Save(
        "evaluation", lambda n, p, made: cv.Evaluation.load(made / f"evaluation{n}").save(p),
        cv.Evaluation.load,
    ),
    "savings": Save("savings", _savings, cv.Savings.load),
    "page": Save("page", _page, _drawn),
}  # fmt: skip


def prepare(made: str) -> None:
    """Make what takes a measurement, so that saving it again gives the same."""
    folder = Path(made)
    for number in (OLD, NEW):
        own.report(number).save(folder / f"report{number}")
        own.evaluation(number).save(folder / f"evaluation{number}")
    own.costs().save(folder / "costs.json")
    own.adapted().adapter.save(folder / "adapter.safetensors")


def save(kind: str, number: int, path: str, made: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAVES[kind].write(number, Path(path), Path(made))


def held(kind: str, path: str) -> str:
    """What a place holds, value and texts, in short; or why nothing can be read there."""
    place = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = json.dumps(plain(SAVES[kind].load(place)), sort_keys=True)
    except Exception as cause:
        return f"{type(cause).__name__}: {cause}"
    texts = sorted(place.iterdir()) if place.is_dir() else []
    shown = [DRAWN_NAME.sub("", f.read_text()) for f in texts if f.suffix in TEXTS]
    return repr(
        plain(torch.frombuffer(bytearray((value + "".join(shown)).encode()), dtype=torch.uint8))
    )


def names(room: str) -> list[str]:
    """Everything that lies in a room, links and hidden files too."""
    return sorted(str(path.relative_to(room)) for path in Path(room).rglob("*"))


def look_and_save(kind: str, path: str, room: str, made: str) -> list[Any]:
    """What a kill left; then save the new one, and what is there now."""
    before = held(kind, path)
    save(kind, NEW, path, made)
    return [before, held(kind, path), names(room)]


def save_here(kind: str, number: int, made: str, name: str) -> None:
    """Save into the working directory."""
    save(kind, number, name, made)
