"""Two processes at the same global batch train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shared_training
import torch
from shared_training import RECIPES, trained
from small_training import make_vit

import circuitvit as cv


def launched(folder: Path, launcher: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *launcher, shared_training.__file__, folder],
        env=os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("processes")
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launcher += [
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=0",
    ]
    launched(made, launcher)
    return made


def curve_of(folder: Path, name: str, rank: int = 0):
    return json.loads((folder / f"{name}.{rank}.json").read_text())


@pytest.mark.parametrize("name", sorted({*RECIPES} - {"single"}))
def test_two_processes_train_as_one_does(name, folder):
    """In double precision: sums in another order differ by less than the tolerance."""
    alone, curve = trained(name), curve_of(folder, name)
    assert len(curve) == RECIPES[name].epochs
    for one, two in zip(alone.history, curve, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
        assert two["gradients"] == pytest.approx(one["gradients"], rel=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
    if alone.adapter is None:
        together = cv.ViT.from_pretrained(folder / name).state_dict()
    else:
        together = cv.Adapter.load(folder / name).apply(make_vit()).state_dict()
    for key, value in alone.vit.state_dict().items():
        torch.testing.assert_close(together[key], value, rtol=1e-6, atol=1e-7)


def test_in_single_precision_the_loss_curve_is_that_of_one_process(folder):
    alone, curve = trained("single"), curve_of(folder, "single")
    assert alone.vit.head.weight.dtype == torch.float32
    for which in ("loss", "validation_loss"):
        one, two = ([entry[which] for entry in h] for h in (alone.history, curve))
        assert two == pytest.approx(one, rel=0, abs=1e-5)
        assert one[-1] < one[0] - 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_all_processes_go_by_the_figures_of_the_main_one(name, folder):
    assert curve_of(folder, name, rank=1) == curve_of(folder, name)
    assert len(trained("patience", rank=1).history) < RECIPES["patience"].epochs
