"""Commands that are killed at random moments: what is there loads, and the same command goes on."""

import shutil
from pathlib import Path

import pytest
from attack.commands import COMMANDS
from attack.tally import SHARE, Tally, drawn
from attack.workers import Workers

KIND = "kills of commands"
KILLS = 6
pytestmark = pytest.mark.attack


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
        looked = workers.run("commands:unreadable", str(room))
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
    assert not (end := workers.run("commands:prepare", str(folder))).error, end.message
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_what_loads_and_goes_on(name, workers, template, tmp_path, tally):
    kills = 2 if name == "demo" else KILLS
    attack(name, max(1, round(kills * SHARE)), workers, template, tmp_path, tally)
    tally.settle()
