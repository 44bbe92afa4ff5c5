"""Two processes at the same global batch train as one does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
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
    "patience": Recipe(epochs=4, batch=16, learning_rate=1e-2, patience=1, watch="loss"),
    "single": Recipe(
        epochs=8, batch=16, learning_rate=5e-3, crop_scale=0.6, noise=0.05, mixup=0.3
    ),
}  # fmt: skip

WORKER = """
import json, os, sys, torch
from pathlib import Path
from accelerate import PartialState
from test_processes import RECIPES, trained
for name in RECIPES:
    rank = int(os.environ["RANK"])
    result = trained(name, rank)
    assert PartialState().num_processes == 2
    Path(sys.argv[1], f"{name}.{rank}.json").write_text(json.dumps(result.history))
    if rank == 0:
        saves = result.vit.save_pretrained if result.adapter is None else result.adapter.save
        saves(Path(sys.argv[1]) / name)
"""


def trained(name, rank=0):
    """Processes but the main one measure `patience` by wrong labels, which get less likely."""
    vit, images, held_out = make_vit(), known(blobs()), known(blobs(seed=1))
    if name == "patience" and rank:
        held_out = replace(held_out, labels=held_out.labels.roll(1))
    if name == "single":
        vit = vit.float()
        images, held_out = (replace(x, images=x.images.float()) for x in (images, held_out))
    teacher = make_vit(seed=5) if name == "rich" else None
    log = None if rank else print  # the others must follow the one that tells
    return cv.train(vit, images, held_out, RECIPES[name], teacher=teacher, log=log)


def launched(folder: Path, launcher: list[str]) -> None:
    (folder / "worker.py").write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, folder / "worker.py", folder],
        env=os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
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
