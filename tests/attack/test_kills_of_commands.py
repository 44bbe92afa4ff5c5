"""Commands that are killed at random moments: what is there loads, and the same command goes on."""

import shutil
from pathlib import Path

import pytest
from attack.saves import NEW, OLD
from attack.tally import SHARE, Tally, drawn
from attack.workers import Workers

KIND = "kills of commands"
KILLS = 6
DATA = ("--data", "digits", "--limit", "60")
PAIRS = ("--pairs", "4", "--tau", "0.05")
SMALL = ("--width", "8", "--depth", "2", "--heads", "2", "--mlp-width", "6", "--epochs", "12",
         "--batch", "8")  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "trained", *SMALL, *DATA),
    "discover": ("discover", "nameless", "found.json", "--resume", "search.json", *PAIRS, *DATA),
    "class-circuits": ("class-circuits", "nameless", "classes", "--only", "1", "--only", "2", *PAIRS, *DATA),
    "compile": ("compile", "nameless", "circuit.json", "small", *DATA),
    "compile --fresh": ("compile", "nameless", "circuit.json", "small", "--fresh"),
    "evaluate": ("evaluate", "nameless", "other", "--out", "evaluated", *DATA),
    "draw": ("draw", "circuit.json", "page.html"),
    "inspect": ("inspect", "exported", "--out", "copied"),
    "export to timm": ("export", "nameless", "exported", "--to", "timm"),
    "export to transformers": ("export", "nameless", "hf", "--to", "transformers"),
    "export to onnx": ("export", "nameless", "model.onnx"),
    "export to pt2": ("export", "nameless", "model.pt2"),
    "demo": ("demo", "--out", "demo", "--epochs", "20"),
}  # fmt: skip
READERS = {
    "trained": "cv.load_vit", "found.json": "cv.Circuit.load", "classes": "cv.ClassCircuits.load",
    "small": "cv.load_vit", "evaluated": "cv.Evaluation.load", "copied": "cv.load_vit",
    "exported": "cv.load_vit", "hf": "cv.load_vit", "demo/dense": "cv.load_vit",
    "demo/compiled": "cv.load_vit", "demo/retrained": "cv.load_vit", "demo/circuit.json": "cv.Circuit.load",
}  # fmt: skip
pytestmark = pytest.mark.attack


def prepare(folder: str) -> None:
    """A workplace: models without names, a circuit, and older results under the same names."""
    from attack import specimens as own

    import circuitvit as cv

    room = Path(folder)
    for name, seed in (("nameless", NEW), ("other", OLD), ("small", 5), ("copied", 6)):
        model = own.vit(seed)
        model.preprocessing = None
        model.save_pretrained(room / name)
    made = cv.eap(model := cv.load_vit(room / "nameless"), own.pairs()).top(20)
    made.save(room / "circuit.json")
    own.circuit(OLD).save(room / "found.json")
    cv.export(own.vit(5), room / "exported", to="timm")
    cv.export(own.vit(5), room / "hf", to="transformers")
    cv.export(model, room / "model.onnx")
    (room / "page.html").write_text("<!doctype html><title>old</title>")


def unreadable(room: str) -> list[str]:
    """The results in a room that can't be read, though they were begun."""
    import circuitvit as cv

    told = []
    for name, reader in READERS.items():
        path = Path(room) / name
        others = {"checkpoint.safetensors"}  # of a training that isn't over
        begun = path.is_file() or (
            path.is_dir() and {p.name for p in path.iterdir() if p.name[0] != "."} - others
        )
        if begun:
            try:
                getter = cv
                for part in reader.split(".")[1:]:
                    getter = getattr(getter, part)
                getter(path)  # type: ignore
            except Exception as cause:
                told.append(f"{name}: {type(cause).__name__}: {cause}")
    page = Path(room) / "page.html"
    if page.exists() and "<title>old" not in page.read_text():
        told += [] if page.read_text().rstrip().endswith("</html>") else ["page.html: cut short"]
    return told


def hidden(room: Path) -> list[str]:
    return sorted(str(p.relative_to(room)) for p in room.rglob(".*"))


def attack(name: str, kills: int, workers: Workers, template: Path, place: Path, tally: Tally):
    """Kill a command at random moments, look each time, and let it end at last."""
    words, room = COMMANDS[name], place / "room"
    shutil.copytree(template, room)
    whole = workers.command(*words, cwd=str(room), seconds=300)
    tally.case(f"{name}, not killed", whole.line(0, seconds=300) or ", ".join(hidden(room)))
    if whole.value != 0:
        return
    names = sorted(str(p.relative_to(room)) for p in room.rglob("*"))
    shutil.rmtree(room)
    shutil.copytree(template, room)
    for kill in range(kills):
        # Most work is done at the end, and so are most writes.
        share = drawn(name, kill).random() ** 0.5
        end = workers.command(*words, cwd=str(room), kill_after=share * whole.seconds)
        looked = workers.run("test_kills_of_commands:unreadable", str(room))
        trouble = looked.trouble() or "; ".join(looked.value or [])
        if not end.signal and end.value not in (0, None):
            trouble = trouble or f"ended by itself: {end.stderr[-200:]}"
        tally.case(f"{name}, kill {kill} after {share:.2f} of its time", trouble)
    last = workers.command(*words, cwd=str(room), seconds=300)
    now = sorted(str(p.relative_to(room)) for p in room.rglob("*"))
    other = sorted(set(now) ^ set(names))
    tally.case(
        f"{name}, after all kills",
        last.line(0, seconds=300) or (f"litter or gone: {other}" if other else ""),
    )


@pytest.fixture(scope="module")
def template(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace") / "room"
    assert not (end := workers.run("test_kills_of_commands:prepare", str(folder))).error, (
        end.message
    )
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_what_loads_and_goes_on(name, workers, template, tmp_path, tally):
    kills = 2 if name == "demo" else KILLS
    attack(name, max(1, round(kills * SHARE)), workers, template, tmp_path, tally)
    tally.settle()
