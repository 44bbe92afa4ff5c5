"""A program for the tests: trains in a child process, and kills it at random moments.

Each child is forked, so that what takes seconds is imported once, and gets SIGKILL, which no process
can notice. Run as `killed_training.py FOLDER KILLS SEED`.
"""

import json
import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from small_training import blobs, make_vit

import circuitvit as cv
from circuitvit.train import Recipe

RECIPE = Recipe(
    epochs=45, batch=16, accumulate=2, rotate=15, horizontal_flip=True, crop_scale=0.6,
    rand_augment=1, noise=0.05, erase=0.3, mixup=0.3, cutmix=1.0, drop_path=0.3, ema_decay=0.9,
    keep_best=True, watch="loss",
)  # fmt: skip


def known(images: cv.ImageSet) -> cv.ImageSet:
    """With a preprocessing, for RandAugment."""
    seen = cv.Preprocessing(mean=(0.3,), std=(0.4,))
    return cv.ImageSet(images.images, images.labels, images.class_names, seen)


def train(folder: Path) -> None:
    """The training, then its outcome beside the checkpoint."""
    torch.manual_seed(time.time_ns())  # whatever state a process has must not matter
    result = cv.train(
        make_vit(), known(blobs()), known(blobs(seed=1)), RECIPE, folder=folder,
        teacher=make_vit(seed=5),
    )  # fmt: skip
    result.vit.save_pretrained(folder / "vit")
    assert result.best is not None
    result.best.save_pretrained(folder / "best")


def child(folder: Path, delay: float | None) -> int:
    """Train in a child, killed after so many seconds; how it ended, as `os.waitpid` says."""
    process = os.fork()
    if process == 0:
        train(folder)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def epochs_done(folder: Path) -> int:
    """How many epochs the checkpoint holds."""
    from circuitvit.train.checkpoint import TrainingCheckpoint

    path = folder / "run" / "checkpoint.safetensors"
    return len(TrainingCheckpoint.load(path).history) if path.exists() else 0


def main() -> None:
    """Train whole, then killed again and again, and write how it went."""
    folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)
    import_module("torchvision.transforms.v2")
    began = time.perf_counter()
    assert child(folder / "whole", None) == 0
    whole = time.perf_counter() - began
    ends, epochs = [], []
    for _ in range(kills):
        # Together less than the whole, so that every one meets a training under way.
        ends.append(child(folder / "run", draw.uniform(0.02, 0.9) * whole / kills))
        epochs.append(epochs_done(folder))
    ends.append(child(folder / "run", None))
    (folder / "report.json").write_text(
        json.dumps({"ends": ends, "epochs": epochs, "seconds": whole})
    )


if __name__ == "__main__":
    main()
