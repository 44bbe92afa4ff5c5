"""Nothing outside a folder is read or written for what its files say, and odd paths are refused."""

import json
import shutil
from pathlib import Path

import pytest
from attack.specimens import KINDS
from attack.tally import Tally
from attack.workers import Workers

KIND = "links and paths"
pytestmark = pytest.mark.attack
PLACES = (
    "../escaped/circuit.json", "{outside}/circuit.json", "inside/../../escaped/circuit.json",
    "link/circuit.json", "..", "", ".", "a\x00b/circuit.json", "x" * 5000, "~/circuit.json",
    "..\\escaped\\circuit.json", "/dev/zero", "classes.json",
)  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def keep(folder: str) -> None:
    """Find circuits, but for those that the folder holds already."""
    from attack import specimens as own

    own.class_circuits(resume=folder)


def load(folder: str) -> None:
    import circuitvit as cv

    cv.ClassCircuits.load(folder)


@pytest.mark.parametrize("act", ["load", "keep"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: repr(place)[:30])
def test_a_place_outside_the_folder_is_not_used(place, act, workers, tmp_path, tally):
    room = tmp_path / "room"
    inside, outside = room / "inside", room / "escaped"
    assert not (end := workers.run("test_links_and_paths:keep", str(inside))).error, end.message
    shutil.copytree(inside / "digit-zero", outside)
    (inside / "inside").mkdir()
    (inside / "link").symlink_to("../escaped")
    index = json.loads((inside / "classes.json").read_text())
    index["circuits"]["digit zero"] = place.replace("{outside}", str(outside))
    (inside / "classes.json").write_text(json.dumps(index))
    if act == "keep":
        (outside / "circuit.json").unlink()  # as if it were still to be found
    before = tree(outside)
    end = workers.run(f"test_links_and_paths:{act}", str(inside), seconds=30)
    trouble = end.trouble() or ("was read" if act == "load" and not end.refused else "")
    altered = tree(outside) != before or {p.name for p in room.iterdir()} != {"inside", "escaped"}
    tally.case(f"{place[:40]!r}, {act}", "wrote outside" if altered else trouble)
    tally.settle()


PATHS = {
    "NUL": "a\x00b",
    "5,000 characters": "y" * 5000,
    "a deep one": "/".join(["z"] * 2500),
    "surrogate": "\udcff\ud800",
}
COMMANDS = (
    ("inspect", "{}"), ("inspect", "{model}", "--out", "{}"), ("inspect", "{model}", "--checkpoint", "{}"),
    ("draw", "{}", "x.html"), ("draw", "{circuit}", "{}"), ("discover", "{}", "x.json"),
    ("discover", "{model}", "{}", "--pairs", "2"), ("discover", "{model}", "x.json", "--resume", "{}", "--pairs", "2"),
    ("discover", "{model}", "x.json", "--data", "{}"), ("discover", "{model}", "x.json", "--cache", "{}", "--data", "{data}"),
    ("class-circuits", "{model}", "{}", "--pairs", "2"), ("class-circuits", "{}", "x"), ("compile", "{}", "{circuit}", "x"),
    ("compile", "{model}", "{}", "x"), ("compile", "{model}", "{circuit}", "{}", "--no-card"), ("evaluate", "{}"),
    ("evaluate", "{model}", "--out", "{}"), ("evaluate", "--auto-find", "{}"), ("evaluate", "{model}", "--data", "{}"),
    ("export", "{}", "x.onnx"), ("export", "{model}", "{}", "--to", "timm"), ("export", "{model}", "{}", "--to", "onnx"),
    ("train", "{}", "--epochs", "500"), ("train", "x", "--data", "{}"), ("train", "x", "--start-from", "{}"),
    ("train", "x", "--distill-from", "{}"), ("train", "x", "--epochs", "1", "--tensorboard", "{}"), ("demo", "--out", "{}"),
)  # fmt: skip


def attack_commands(commands, workers: Workers, specimens: Path, room: Path, tally: Tally) -> None:
    """Give commands odd paths, which each refuses in one line."""
    known = {"model": "model/model", "circuit": "circuit/circuit.json", "data": "pictures/pictures"}
    for command in commands:
        for what, path in PATHS.items():
            words = [word.replace("{}", path) for word in command]
            for name, place in known.items():
                words = [word.replace(f"{{{name}}}", str(specimens / place)) for word in words]
            end = workers.run("workers:command", *words, cwd=str(room), seconds=25)
            tally.case(f"{' '.join(command)} with {what}", end.line(2))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_odd_paths_are_refused_in_a_line(command, workers, specimens, tmp_path, tally):
    attack_commands([command], workers, specimens, tmp_path, tally)
    tally.settle()


@pytest.mark.parametrize("what", PATHS)
def test_odd_paths_are_refused_by_everything_that_reads(what, workers, tally):
    for kind in KINDS:
        if kind not in ("checkpoint", "search", "cache"):
            end = workers.run("specimens:read", kind, PATHS[what])
            tally.case(f"{kind} at {what}", end.trouble() or ("" if end.refused else "was read"))
    tally.settle()
