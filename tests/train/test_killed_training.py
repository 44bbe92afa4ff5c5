"""A training that is killed with SIGKILL goes on to the very same bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

KILLS = 7


def parts(path: Path) -> tuple[dict, bytes]:
    """Header and tensors of a safetensors file, whose writer shuffles the header's metadata."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def test_a_run_killed_at_random_moments_ends_with_the_very_same_bytes(tmp_path):
    program = Path(__file__).parents[1] / "killed_training.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path, str(KILLS), "0"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ends"] == [signal.SIGKILL] * KILLS + [0]
    assert report["epochs"] == sorted(report["epochs"])
    assert len({*report["epochs"]}) > 2  # they really went on from one another
    for name in ("vit/model.safetensors", "best/model.safetensors"):
        (told, whole), (told_killed, killed) = (
            parts(tmp_path / r / name) for r in ("whole", "run")
        )
        assert killed == whole
        assert told_killed == told
    left = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert {n for n in left if not n.startswith(".")} == {"checkpoint.safetensors"}
