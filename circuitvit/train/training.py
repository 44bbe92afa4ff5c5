"""Training a ViT on images in memory, on one device or several.

The recipe is the whole of it: distillation, MixUp and averaged weights are left out. Runs under
`accelerate launch` and torchrun too: each process takes its share of every batch.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import AdamW

from circuitvit.circuit_vit import CircuitViT
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet
from circuitvit.measure import accuracy
from circuitvit.progress import progress as progress_bar
from circuitvit.train.augmentation import moved, random_moves
from circuitvit.train.checkpoint import Checkpoint
from circuitvit.train.recipe import Recipe
from circuitvit.vit import ViT

AnyViT = ViT | CircuitViT
Model = TypeVar("Model", bound=AnyViT)
UNDECAYED = ("position", "token", "constant", "table", "pattern")
"""Words in the names of parameters that weight decay leaves alone."""

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Training(Generic[Model]):
    """What a training gave.

    Attributes:
        vit: the model after the last epoch (not the best one), in eval mode, on the device of the
            model that was given; it keeps the preprocessing of its training images.
        history: for each epoch its number from 1, `loss` (mean over its steps, smoothed as in the
            recipe), `validation_accuracy` (0–1), `learning_rate` (of its last step), `seconds`.
    """

    vit: Model
    history: tuple[dict[str, Any], ...]


def train(
    vit: Model,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Training[Model]:
    """Train a copy of a ViT.

    Each epoch draws a new order; the images that don't fill a batch sit that epoch out. On a CPU
    the same arguments and number of threads give the same weights to the bit, resumed or not.

    Args:
        vit: the model to start from; it is left as it is.
        training: images to learn from.
        validation: images whose accuracy is recorded after each epoch; nothing else depends on it.
        recipe: how to train.
        folder: where to keep `checkpoint.safetensors`, written after each epoch. If there is one of
            this very training, it is resumed.
        progress: whether to draw a progress bar; by default on a terminal only.

    Raises:
        CircuitError: images and model don't fit, a batch is larger than the data, the folder holds
            another training or half a checkpoint, or the loss or its gradient is not finite.
    """
    # Else processes that torchrun starts on a machine without a GPU don't find each other.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    _check(vit, training, validation, recipe, accelerator)
    loop = _Loop(vit, training, validation, recipe, accelerator)
    run = _run(vit, training, validation, recipe)
    path = None if folder is None else Path(folder) / CHECKPOINT
    history: tuple[dict[str, Any], ...] = ()
    if path is not None and path.exists():
        checkpoint = Checkpoint.load(path)
        checkpoint.check_run(run, path)
        checkpoint.restore(loop.model, loop.optimizer)
        history = checkpoint.history
    show = progress if accelerator.is_main_process else False
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    total, done = recipe.epochs * loop.steps, len(history) * loop.steps
    with (
        torch.random.fork_rng(devices),
        progress_bar("training", total, done=done, show=show) as step_done,
    ):
        for epoch in range(len(history), recipe.epochs):
            history = (*history, loop.epoch(epoch, step_done))
            if path is not None and accelerator.is_main_process:
                Checkpoint.of(run, history, loop.model, loop.optimizer).save(path)
            accelerator.wait_for_everyone()
    trained = cast(Model, loop.model.to(next(vit.parameters()).device).eval())
    return Training(trained, history)


class _Loop:
    """A copy of the model with its optimizer, and the epochs that change them."""

    def __init__(
        self,
        vit: AnyViT,
        training: ImageSet,
        validation: ImageSet,
        recipe: Recipe,
        accelerator: Accelerator,
    ) -> None:
        self.training, self.validation, self.recipe = training, validation, recipe
        self.accelerator = accelerator
        self.model = copy.deepcopy(vit).to(accelerator.device)
        self.model.preprocessing = training.preprocessing or vit.preprocessing
        self.optimizer = adamw(self.model, recipe)
        self.steps = len(training) // recipe.batch
        # `forward` gives the logits of `model`, in whatever wrapper the processes need.
        self.forward, self.stepper = accelerator.prepare(self.model, self.optimizer)

    def epoch(self, epoch: int, step_done: Callable[..., None]) -> dict[str, Any]:
        """See every image once and tell how it went; all it draws comes from seed and epoch."""
        began, recipe = time.perf_counter(), self.recipe
        seed = int(np.random.SeedSequence([recipe.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed)  # for layers that draw; `train` puts the caller's state back
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.training), generator=generator)
        side = self.model.config.image_size
        moves = random_moves(len(order), side, recipe, generator) if recipe.augment else None
        self.forward.train()
        rate, records = 0.0, []
        for step in range(self.steps):
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch]
            rate = recipe.learning_rate_at(epoch * self.steps + step, steps_an_epoch=self.steps)
            records.append(self._step(chosen, moves, rate))
            step_done(f"epoch {epoch + 1} of {recipe.epochs}")
        loss = self._mean_loss(torch.stack(records), epoch)
        held_out = accuracy(
            self.model,
            self.validation.images.to(self.accelerator.device),
            self.validation.labels,
        )
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "validation_accuracy": held_out.top1,
            "learning_rate": rate,
            "seconds": time.perf_counter() - began,
        }

    def _step(
        self, chosen: Int[Tensor, " image"], moves: Float[Tensor, "all 2 3"] | None, rate: float
    ) -> Float[Tensor, "2"]:
        """One step on this process's share of a batch: the loss and the gradient's norm."""
        accelerator, recipe = self.accelerator, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = chosen[accelerator.process_index :: accelerator.num_processes]
        images = self.training.images[mine].to(accelerator.device)
        labels = self.training.labels[mine].to(accelerator.device)
        if moves is not None:
            images = moved(images, moves[mine])
        half = recipe.mixed_precision == "bf16"
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half):
            logits = self.forward(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)
        assert norm is not None
        self.stepper.step()
        self.stepper.zero_grad()
        return torch.stack([loss.detach(), norm.detach()])

    def _mean_loss(self, records: Float[Tensor, "step 2"], epoch: int) -> float:
        """The mean loss of an epoch; looked at once an epoch, so that a GPU need not wait.

        Raises:
            CircuitError: a loss or gradient was not finite. The epoch is lost, the checkpoint of
                the one before is kept.
        """
        records = cast(Tensor, self.accelerator.reduce(records, "mean"))
        bad = (~torch.isfinite(records)).nonzero()
        if len(bad):
            step, which = bad[0].tolist()
            raise CircuitError(
                f"the {('loss', 'gradient')[which]} became NaN or infinite at step {step + 1} of "
                f"{self.steps} in epoch {epoch + 1}. Lower the learning rate "
                f"({self.recipe.learning_rate}) or lengthen the warm-up. With a folder, the "
                "checkpoint of the epoch before is kept."
            )
        return records[:, 0].mean().item()


def adamw(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW that decays weights, but no norm, bias, position, token, constant or table."""
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        free = parameter.ndim < 2 or any(word in name for word in UNDECAYED)
        (kept if free else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.learning_rate)


def _check(
    vit: AnyViT,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    accelerator: Accelerator,
) -> None:
    for name, images in (("training images", training), ("validation images", validation)):
        vit.check_images(images.images, name=name)
    problems = []
    if training.class_names != validation.class_names:
        problems.append("training and validation images have different classes")
    if len(training.class_names) > vit.config.classes:
        problems.append(
            f"the images are of {len(training.class_names)} classes and the model has "
            f"{vit.config.classes}; make it with ViTConfig(classes={len(training.class_names)})"
        )
    if recipe.batch > len(training):
        problems.append(
            f"a batch of {recipe.batch} is larger than the {len(training)} training images; "
            f"use Recipe(batch={len(training)}) or less"
        )
    if recipe.batch % accelerator.num_processes:
        problems.append(
            f"a batch of {recipe.batch} can't be shared by {accelerator.num_processes} processes "
            "alike; use a multiple"
        )
    if accelerator.mixed_precision not in ("no", recipe.mixed_precision):
        problems.append(
            f"accelerate was launched with {accelerator.mixed_precision} and the recipe says "
            f"{recipe.mixed_precision}; say the same in both"
        )
    if problems:
        raise CircuitError("this training can't start: " + "; ".join(problems) + ".")


def _run(vit: AnyViT, training: ImageSet, validation: ImageSet, recipe: Recipe) -> dict[str, Any]:
    """What makes it this training and no other, as JSON knows it."""
    run = {
        "training images": training.fingerprint(),
        "validation images": validation.fingerprint(),
        "initial weights": vit.fingerprint(),
    }
    run |= {f"recipe.{name}": value for name, value in recipe.as_dict().items()}
    return run | {f"config.{name}": value for name, value in vit.config.as_dict().items()}
