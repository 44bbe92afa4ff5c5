"""A full disk, a small limit of file size, places that can't be written: one line, old content whole."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack.commands import COMMANDS
from attack.saves import NEW, OLD, SAVES
from attack.tally import Tally
from attack.workers import Workers

KIND = "full disks"
SIZES = (0, 100, 5_000, 300_000)
pytestmark = pytest.mark.attack
UNWORKED = "workers:command_without_images"
PREPARE = "commands:prepare"


@pytest.fixture(scope="module")
def made(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for what, name in (("saves:prepare", "saves"), (PREPARE, "room")):
        assert not (end := workers.run(what, str(folder / name))).error, end.message
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=False)


def hidden(room: Path) -> list[str]:
    return sorted(str(p.relative_to(room)) for p in room.rglob(".*"))


def after(kind: str, room: Path, path: Path, made: Path, end, old: str, workers: Workers) -> str:
    """What is wrong after a save that may have failed; then it is saved where there is room."""
    if end.trouble():
        return end.trouble()
    now = workers.run("saves:held", kind, str(path)).value
    if end.refused and now != old:
        return f"refused, and the old one is not whole: {now[:100]}"
    again = workers.run("saves:save", kind, NEW, str(path), str(made))
    return again.trouble() or (f"litter {hidden(room)}" if hidden(room) else "")


def attack_save(kind: str, sizes, workers: Workers, made: Path, place: Path, tally: Tally) -> None:
    """Save over an old one under limits of file size."""
    for size in sizes:
        room = place / f"{size}"
        path = room / SAVES[kind].name
        room.mkdir()
        workers.run("saves:save", kind, OLD, str(path), str(made))
        old = workers.run("saves:held", kind, str(path)).value
        end = workers.run("saves:save", kind, NEW, str(path), str(made), file_size=size)
        tally.case(
            f"{kind}, files of {size} bytes", after(kind, room, path, made, end, old, workers)
        )


@pytest.mark.parametrize("kind", SAVES)
def test_a_save_that_has_no_room_says_so_and_leaves_the_old(kind, workers, made, tmp_path, tally):
    attack_save(kind, SIZES, workers, made / "saves", tmp_path, tally)
    tally.settle()


def left_free(disk: Path, free: int) -> None:
    """Fill a file system but for so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    space = shutil.disk_usage(disk).free - free
    if space > 0:
        filler.write_bytes(bytes(space))


@pytest.mark.parametrize("kind", SAVES)
def test_a_save_on_a_full_disk_says_so_and_leaves_the_old(kind, workers, made, small_disk, tally):
    room = small_disk / "room"
    path = room / SAVES[kind].name
    for free in (0, 4_096, 20_480):
        shutil.rmtree(room, ignore_errors=True)
        (small_disk / "filler").unlink(missing_ok=True)
        room.mkdir()
        first = workers.run("saves:save", kind, OLD, str(path), str(made / "saves"))
        assert not first.error, first.message
        old = workers.run("saves:held", kind, str(path)).value
        left_free(small_disk, free)
        end = workers.run("saves:save", kind, NEW, str(path), str(made / "saves"))
        (small_disk / "filler").unlink(missing_ok=True)
        trouble = after(kind, room, path, made / "saves", end, old, workers)
        tally.case(f"{kind}, {free} bytes free", trouble)
    tally.settle()


def attack_command(
    name: str, sizes, workers: Workers, made: Path, place: Path, tally: Tally
) -> None:
    """Run a command under limits of file size; then without them."""
    for size in sizes:
        room = place / f"{size}"
        shutil.copytree(made / "room", room)
        end = workers.command(*COMMANDS[name], cwd=str(room), file_size=size)
        trouble = end.line(0) and end.line(2)
        looked = workers.run("commands:unreadable", str(room))
        trouble = trouble or "; ".join(looked.value or [])
        if not trouble and name != "demo":
            last = workers.command(*COMMANDS[name], cwd=str(room))
            trouble = last.line(0) or (f"litter {hidden(room)}" if hidden(room) else "")
        tally.case(f"{name}, files of {size} bytes", trouble)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_a_command_that_has_no_room_says_so_in_a_line(name, workers, made, tmp_path, tally):
    attack_command(name, SIZES, workers, made, tmp_path, tally)
    tally.settle()


BIG = ("--data", "digits", "--pairs", "600", "--tau", "0.0")
LATE: dict[str, tuple[str, ...]] = {
    "discover": ("discover", "nameless", "{out}", *BIG),
    "discover, search": ("discover", "nameless", "found2.json", "--resume", "{out}", *BIG),
    "class-circuits": ("class-circuits", "nameless", "{out}", *BIG),
    "evaluate": ("evaluate", "nameless", "other", "--out", "{out}", "--data", "digits"),
    "demo": ("demo", "--out", "{out}", "--epochs", "400"),
    "train": ("train", "{out}", "--epochs", "4000", "--data", "digits"),
    "compile": ("compile", "nameless", "circuit.json", "{out}", "--data", "digits"),
    "export": ("export", "nameless", "{out}", "--to", "timm"),
    "export onnx": ("export", "nameless", "{out}", "--to", "onnx"),
    "draw": ("draw", "circuit.json", "{out}"),
    "inspect": ("inspect", "nameless", "--out", "{out}"),
}  # fmt: skip


def unwritable_places(room: Path) -> dict[str, str]:
    """Outputs that can't be, by what is wrong with them."""
    (room / "file").write_text("x")
    return {
        "below a file": str(room / "file" / "below"),
        "a long name": str(room / ("n" * 300)),
        "a long path": str(room / "/".join(["deep"] * 1300)),
        "a NUL": "a\x00b",
    }


@pytest.mark.parametrize("name", LATE)
def test_outputs_are_checked_before_work_starts(name, workers, made, tmp_path, tally):
    room = tmp_path / "room"
    shutil.copytree(made / "room", room)
    for what, place in unwritable_places(room).items():
        words = [word.replace("{out}", place) for word in LATE[name]]
        end = workers.run(UNWORKED, *words, cwd=str(room), seconds=20)
        trouble = end.line(2)
        tally.case(f"{name}, {what}", trouble)
    tally.settle()


@pytest.mark.parametrize("name", LATE)
def test_a_read_only_output_is_refused_before_work(
    name, workers, made, small_disk, tmp_path, tally
):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    room = tmp_path / "room"
    shutil.copytree(made / "room", room)
    words = [word.replace("{out}", str(small_disk / "out")) for word in LATE[name]]
    end = workers.run(UNWORKED, *words, cwd=str(room), seconds=20)
    trouble = end.line(2)
    tally.case(f"{name}, read-only", trouble)
    tally.settle()
