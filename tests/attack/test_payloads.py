"""No file and no folder of a model or of images runs code of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from attack.tally import Tally
from attack.workers import Workers

KIND = "payloads"
pytestmark = pytest.mark.attack
YES = "y\n" * 50


def attack(names: list[str], folder: Path, mark: Path, workers: Workers, tally: Tally) -> None:
    """Read each with everything that reads, answering yes to what may be asked."""
    for name in names:
        end = workers.run("payloads:read_all", str(folder / name), stdin=YES, seconds=60)
        trouble = end.trouble(60) or "; ".join(end.value or [])
        if (folder / name).is_dir() and not mark.exists():
            told = workers.command("inspect", ".", cwd=str(folder / name), stdin=YES)
            trouble = trouble or told.line(2)
        tally.case(name, "ran its code" if mark.exists() else trouble)
        mark.unlink(missing_ok=True) if not mark.is_dir() else mark.rmdir()


def test_nothing_runs(workers, tmp_path, tally):
    mark, folder = tmp_path / "mark", tmp_path / "payloads"
    made = workers.run("payloads:make", str(folder), str(mark))
    assert not made.error, made.message
    assert not mark.exists()
    attack(made.value, folder, mark, workers, tally)
    tally.settle()


def test_python_in_the_working_directory_is_not_imported(workers, tmp_path, tally):
    mark, folder = tmp_path / "mark", tmp_path / "payloads"
    assert not workers.run("payloads:make", str(folder), str(mark)).error
    command = Path(sys.executable).parent / "circuitvit"
    done = subprocess.run(
        [command, "inspect", "."], cwd=folder / "folder, own", capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, input=YES,
    )  # fmt: skip
    wrong = done.returncode != 2 or "Traceback" in done.stderr
    tally.case("sitecustomize and others", "ran its code" if mark.exists() else done.stderr * wrong)
    tally.settle()
