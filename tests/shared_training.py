"""A program for the tests: trains in one of several processes, and writes how it went.

Run by `accelerate launch` or torchrun as `shared_training.py FOLDER`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from killed_training import RECIPE, known
from small_training import blobs, make_vit

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


def trained(name, rank=0):
    """Processes but the main one measure `patience` by wrong labels, which get less likely."""
    vit, images, held_out = make_vit(), known(blobs()), known(blobs(seed=1))
    if name == "patience" and rank:
        held_out = replace(held_out, labels=held_out.labels.roll(1))
    if name == "single":
        vit = vit.float()
        images, held_out = (replace(x, images=x.images.float()) for x in (images, held_out))
    teacher = make_vit(seed=5) if name == "rich" else None
    log = None if rank else print  # the others must follow the one that logs
    return cv.train(vit, images, held_out, RECIPES[name], teacher=teacher, log=log)


def main() -> None:
    """Train by every recipe; each process writes its history, the main one its model."""
    from accelerate import PartialState

    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for name in RECIPES:
        result = trained(name, rank)
        assert PartialState().num_processes == 2
        (folder / f"{name}.{rank}.json").write_text(json.dumps(result.history))
        if rank == 0:
            save = result.vit.save_pretrained if result.adapter is None else result.adapter.save
            save(folder / name)


if __name__ == "__main__":
    main()
