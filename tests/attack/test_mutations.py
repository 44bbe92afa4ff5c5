"""Damaged and forged files of every kind are refused, or read as what they were."""

import shutil
from pathlib import Path

import pytest
from attack.mutations import mutate
from attack.specimens import KINDS, words
from attack.tally import SHARE, Tally, drawn
from attack.workers import Workers

KIND = "damaged files"
CASES = 90
BY_COMMAND = 6
"""Each how manieth case is read by the command line, where a command reads it."""
pytestmark = pytest.mark.attack


def unharmed(path: Path) -> bool:
    """Whether it is a file of ours whose loss matters: models' cards and pages are only shown."""
    shown = {".md", ".html", ".js"}
    return path.is_file() and not path.is_symlink() and path.suffix not in shown


def attack(kind: str, cases: range, workers: Workers, specimens: Path, room: Path, tally: Tally):
    """Damage one file at a time, and look at how reading ends."""
    specimen, origin = KINDS[kind], specimens / kind
    whole = workers.run("specimens:read", kind, str(origin / specimen.name))
    assert whole.value, whole.message
    for case in cases:
        draw = drawn(kind, case)
        place = room / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(origin, place, symlinks=True)
        target = place / specimen.name
        files = sorted(filter(unharmed, [target, *target.rglob("*")]))
        file = draw.choice(files)
        how, sealed = mutate(file, draw)
        name = f"{kind}, case {case}, {how} of {file.relative_to(place)}"
        if specimen.command and case % BY_COMMAND == 0:
            end = workers.command(*words(kind, target), seconds=21)
            tally.case(f"{name}, by command", end.line(0) and end.line(2))
            continue
        end = workers.run("specimens:read", kind, str(target), seconds=21)
        trouble = end.trouble()
        if not trouble and specimen.never_refused and end.refused:
            trouble = f"was refused: {end.message}"
        if not trouble and specimen.guarded and not sealed and not end.refused:
            (before, few), (now, more) = whole.value.split(), end.value.split()
            told = int(more) > int(few)  # what was left out is named
            trouble = "" if now == before or told else "was read as something else"
        tally.case(name, trouble)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_as_they_were(kind, workers, specimens, tmp_path, tally):
    attack(kind, range(round(CASES * SHARE)), workers, specimens, tmp_path, tally)
    tally.settle()
