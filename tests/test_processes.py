"""Two processes at the same global batch train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_training import RECIPE, known
from test_train import blobs, make_vit

import circuitvit as cv
from circuitvit.train import Recipe

RECIPES = {
    "plain": Recipe(epochs=2, batch=16),
    "adapter": Recipe(epochs=2, batch=16, tune="adapter", drop_path=0.2, ema_decay=0.5),
    "rich": RECIPE,
}

WORKER = """
import json, sys, torch
from pathlib import Path
from accelerate import PartialState
from test_processes import RECIPES, trained
for name, recipe in RECIPES.items():
    result = trained(recipe)
    assert PartialState().num_processes == 2
    if PartialState().is_main_process:
        saves = result.vit.save_pretrained if result.adapter is None else result.adapter.save
        saves(Path(sys.argv[1]) / name)
        Path(sys.argv[1], f"{name}.json").write_text(json.dumps(result.history))
"""


def trained(recipe):
    teacher = make_vit(seed=5) if recipe is RECIPE else None
    return cv.train(make_vit(), known(blobs()), known(blobs(seed=1)), recipe, teacher=teacher)


def launched(folder: Path, launcher: list[str]) -> None:
    (folder / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, folder / "worker.py", folder],
        env=os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_two_processes_train_as_one_does(tmp_path):
    """In double precision: sums in another order differ by less than the tolerance."""
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launcher += [
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]
    launched(tmp_path, launcher)
    for name, recipe in RECIPES.items():
        alone = trained(recipe)
        if alone.adapter is None:
            together = cv.ViT.from_pretrained(tmp_path / name).state_dict()
        else:
            together = cv.Adapter.load(tmp_path / name).apply(make_vit()).state_dict()
        curve = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(curve) == recipe.epochs
        for one, two in zip(alone.history, curve, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
            assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
            assert two["gradients"] == pytest.approx(one["gradients"], rel=1e-5)
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
        for key, value in alone.vit.state_dict().items():
            torch.testing.assert_close(together[key], value, rtol=1e-6, atol=1e-7)
