"""Training a ViT on images in memory, on one device or several.

It also runs under `accelerate launch` and torchrun: each process takes its share of every batch.
Images aren't streamed from disk.
"""

import copy
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.files import check_writable, held
from circuitvit.images import ImageSet
from circuitvit.measure import accuracy
from circuitvit.models.vit import ViT
from circuitvit.progress import progress as progress_bar
from circuitvit.torch_modes import in_default_modes
from circuitvit.train.adapter import AdaptedViT
from circuitvit.train.batches import EpochBatches
from circuitvit.train.checkpoint import TrainingCheckpoint
from circuitvit.train.distillation import Teacher, training_loss
from circuitvit.train.drop_path import DroppedPaths
from circuitvit.train.epoch_records import GradientFlow, best_epoch, is_over, tensorboard_curves
from circuitvit.train.optimizer import WeightAverage, adamw, trained_parameters
from circuitvit.train.preconditions import check_training, resulting_preprocessing, run_of
from circuitvit.train.recipe import Purpose, Recipe, seed_of
from circuitvit.train.result import AnyViT, Trainable, Training, with_history

CHECKPOINT = "checkpoint.safetensors"
LINES_AN_EPOCH = 20
HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@in_default_modes
def train(
    vit: Trainable,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    teacher: nn.Module | None = None,
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
) -> Training[Trainable]:
    """Train a copy of a ViT.

    Each epoch draws a new order and leaves out the images that don't fill a batch. On a CPU the
    same arguments and number of threads give the same weights to the bit, resumed or not.

    Args:
        vit: the model to start from; it is not changed. Its head must have the images' classes:
            `with_new_head` makes one for others.
        training: training images.
        validation: images for the accuracy and loss after each epoch. They decide which epoch is
            best and, with `patience`, when to stop; no weight depends on them otherwise.
        recipe: how to train.
        folder: for `checkpoint.safetensors`, written after each epoch. If it holds one of the same
            training, that is resumed.
        teacher: a module from images to logits of the same classes, to distill from; it is not
            changed.
        tensorboard: a folder for TensorBoard's curves, a point an epoch; needs
            `circuitvit[tensorboard]`. A resumed training continues them.
        progress: whether to draw a progress bar; by default on a terminal only.
        log: called with about 20 lines an epoch, such as `print`, where no bar is drawn.

    Raises:
        CircuitError: model, images, recipe and teacher don't fit, the folder holds another training
            or half a checkpoint or can't be written to, TensorBoard is missing, or the loss or its
            gradient is not finite.
    """
    # Without cpu=True, torchrun's processes don't find each other on a machine without a GPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check_training(vit, training, validation, recipe, teacher, accelerator)
    images = training.images[:0].to(accelerator.device)
    copied = None if teacher is None else Teacher(teacher, images)
    loop = _Loop(vit, training, validation, recipe, copied, accelerator)
    run = run_of(vit, training, validation, recipe, copied)
    path = None if folder is None else Path(folder) / CHECKPOINT
    main = accelerator.is_main_process
    if path is not None and main:
        check_writable(path)
    alone = held(path, "a training") if path is not None and main else nullcontext()
    show = (sys.stderr.isatty() if progress is None else progress) and main
    loop.log = log if main and not show else None
    [loop.logs] = broadcast_object_list([loop.log is not None])
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with alone, torch.random.fork_rng(devices):
        if path is not None and path.exists():
            checkpoint = TrainingCheckpoint.load(path)
            checkpoint.check_run(run, path)
            loop.restore(checkpoint)
        loop.run(tensorboard, run, path, show=show)
    result = loop.result(next(vit.parameters()).device)
    return with_history(result, vit, run, recipe, teacher)


class _Loop:
    """A copy of the model with its optimizer, trained epoch by epoch."""

    def __init__(
        self,
        vit: AnyViT,
        training: ImageSet,
        validation: ImageSet,
        recipe: Recipe,
        teacher: Teacher | None,
        accelerator: Accelerator,
    ) -> None:
        self.training, self.validation, self.recipe = training, validation, recipe
        self.teacher, self.accelerator = teacher, accelerator
        self.model = _to_train(vit, training, recipe).to(accelerator.device)
        self.model.preprocessing = resulting_preprocessing(vit, training)
        self.average = WeightAverage(self.model, recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = adamw(self.model, recipe)
        trained = {id(p) for p in trained_parameters(self.model, recipe).values()}
        self.frozen = [p for p in self.model.parameters() if id(p) not in trained]
        for parameter in self.frozen:  # no gradient is computed, nor sent between processes
            parameter.requires_grad_(False)
        self.flow = GradientFlow(self.model)
        self.steps = len(training) // recipe.batch
        half = recipe.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=half)
        self.history: tuple[dict[str, Any], ...] = ()
        self.best: dict[str, Tensor] = {}
        self.dropped = DroppedPaths(self.body, recipe)
        self.log: Callable[[str], None] | None = None  # of the main process
        self.logs = False  # whether the main process has a log
        # `forward` computes the logits of `model`, in a wrapper where there are several processes.
        self.forward, self.stepper = accelerator.prepare(self.model, self.optimizer)

    @property
    def outcome(self) -> AnyViT | AdaptedViT:
        """The model that is measured and returned: the average, if there is one."""
        return self.model if self.average is None else cast(AnyViT, self.average.model)

    @property
    def body(self) -> AnyViT:
        """The model without an adapter's wrapper."""
        return self.model.backbone if isinstance(self.model, AdaptedViT) else self.model

    def run(
        self, tensorboard: str | Path | None, run: dict[str, Any], path: Path | None, *, show: bool
    ) -> None:
        """Train until the recipe's end, and save a checkpoint after each epoch."""
        main = self.accelerator.is_main_process
        total, done = self.recipe.epochs * self.steps, len(self.history) * self.steps
        with (
            self.dropped,
            tensorboard_curves(tensorboard, self.history, main=main) as add_to_curves,
            progress_bar("training", total, done=done, show=show) as step_done,
        ):
            while not is_over(self.history, self.recipe):
                epoch = len(self.history)
                self.record_epoch(self.epoch(epoch, step_done))
                add_to_curves(self.history[-1])
                if path is not None and main:
                    self.checkpoint(run).save(path)
                self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: TrainingCheckpoint) -> None:
        """Continue from a checkpoint."""
        checkpoint.restore(self.model, self.optimizer)
        self.history, self.best = checkpoint.history, checkpoint.part("best")
        if self.average is not None:
            self.average.restore(checkpoint.part("average"))
        scale = checkpoint.part("scaler")
        if scale:
            state = {"scale": scale["scale"].item()}
            state["_growth_tracker"] = int(scale["_growth_tracker"].item())
            self.scaler.load_state_dict(self.scaler.state_dict() | state)

    def checkpoint(self, run: dict[str, Any]) -> TrainingCheckpoint:
        """The state of the training."""
        more = {"best": self.best}
        if self.average is not None:
            more["average"] = self.average.model.state_dict()
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            more["scaler"] = {
                n: torch.tensor(state[n], dtype=torch.float64) for n in ("scale", "_growth_tracker")
            }
        return TrainingCheckpoint.of(run, self.history, self.model, self.optimizer, more)

    def record_epoch(self, entry: dict[str, Any]) -> None:
        """Add an epoch to the history, and keep its weights if it is the best one so far.

        All processes take the main one's entry, so that they stop at the same epoch: on GPUs,
        numbers can differ in the last digit.
        """
        self.history = (*self.history, *broadcast_object_list([entry]))
        if self.recipe.keeps_best and best_epoch(self.history, self.recipe) == len(self.history):
            self.best = {n: t.detach().cpu().clone() for n, t in self.outcome.state_dict().items()}

    def result(self, device: torch.device) -> Training[Any]:
        """The result, on a device."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        vit, best = self.outcome.to(device).eval(), None
        if self.best:
            best = copy.deepcopy(vit)
            best.load_state_dict(self.best)
        return Training(vit, self.history, best, best_epoch(self.history, self.recipe))

    def epoch(self, epoch: int, step_done: Callable[..., None]) -> dict[str, Any]:
        """Train one epoch and return its entry in the history; draws depend on seed and epoch."""
        began, recipe, device = time.perf_counter(), self.recipe, self.accelerator.device
        torch.manual_seed(seed_of(recipe.seed, epoch))  # for dropout layers
        batches = EpochBatches(self.training, recipe, self.model.config.classes, epoch, device)
        self.forward.train()
        rate, records = 0.0, []
        for step in range(self.steps):
            done = epoch * self.steps + step
            rate = recipe.learning_rate_at(done, steps_an_epoch=self.steps)
            records.append(self._step(batches, step, rate))
            if self.average is not None:
                self.average.update(self.model, done)
            step_done(f"epoch {epoch + 1} of {recipe.epochs}")
            self._log_step(epoch, records, rate)
        loss, norm = self._means(torch.stack(records), epoch)
        held_out = accuracy(self.outcome, self.validation.images.to(device), self.validation.labels)
        entry = {
            "epoch": epoch + 1,
            "loss": loss,
            "validation_accuracy": held_out.top1,
            "validation_loss": held_out.loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "gradients": self.flow.take_means(),
            "seconds": time.perf_counter() - began,
        }
        if self.log is not None:
            self.log(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:z.4f}, validation accuracy "
                f"{held_out.top1:z.2%}, loss {held_out.loss:z.4f}; {entry['seconds']:z.1f} s"
            )
        return entry

    def _log_step(self, epoch: int, records: list[Tensor], rate: float) -> None:
        """Log a line after every twentieth of an epoch but the last, which has the epoch's line.

        Raises:
            CircuitError: a loss or gradient was not finite; all processes check, so all stop.
        """
        done = len(records)
        parts = [LINES_AN_EPOCH * number // self.steps for number in (done - 1, done)]
        if self.logs and parts[0] < parts[1] < LINES_AN_EPOCH:
            loss, norm = self._finite(torch.stack(records), epoch)[-1].tolist()
            if self.log is not None:
                self.log(
                    f"epoch {epoch + 1}/{self.recipe.epochs}, step {done}/{self.steps}: "
                    f"loss {loss:z.4f}, gradient {norm:z.3g}, learning rate {rate:z.3g}"
                )

    def _step(self, batches: EpochBatches, step: int, rate: float) -> Float[Tensor, "2"]:
        """One step on this process's share of a batch; returns loss and gradient norm."""
        accelerator, recipe = self.accelerator, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = torch.arange(recipe.batch)[accelerator.process_index :: accelerator.num_processes]
        factors = self.dropped.drawn(batches.epoch, step)
        losses, parts = [], mine.tensor_split(recipe.accumulate)
        for number, rows in enumerate(parts, 1):
            self.dropped.factors = factors[:, rows]
            last = number == len(parts)
            # Processes exchange gradients once a step, after the last micro-batch.
            with nullcontext() if last else accelerator.no_sync(self.forward):
                loss = self._loss(batches, step, rows)
                if len(parts) > 1:
                    loss = loss * (len(rows) / len(mine))
                accelerator.backward(self.scaler.scale(loss))
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        self.flow.record()
        norm = cast(Tensor, accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.stepper.step()
        self.stepper.zero_grad()
        return torch.stack([torch.stack(losses).sum(), norm.detach()])

    def _loss(self, batches: EpochBatches, step: int, rows: Tensor) -> Float[Tensor, ""]:
        """The mean loss of some rows of a step's global batch."""
        recipe, device = self.recipe, self.accelerator.device
        images, targets = batches.batch(step, rows)
        half = HALF_DTYPES.get(recipe.mixed_precision)
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            logits = self.forward(images)
            teacher_logits = None if self.teacher is None else self.teacher.logits(images)
        return training_loss(logits, targets, teacher_logits, recipe)

    def _means(self, records: Float[Tensor, "step 2"], epoch: int) -> tuple[float, float | None]:
        """An epoch's mean loss and gradient norm, copied from a GPU once an epoch."""
        records = self._finite(records, epoch)
        norms = records[:, 1][torch.isfinite(records[:, 1])]
        return records[:, 0].mean().item(), norms.mean().item() if len(norms) else None

    def _finite(self, records: Float[Tensor, "step 2"], epoch: int) -> Float[Tensor, "step 2"]:
        """The mean of loss and gradient norm over the processes, refused if not finite.

        Raises:
            CircuitError: a loss or gradient was not finite.
        """
        records = cast(Tensor, self.accelerator.reduce(records, "mean"))
        # With fp16 an infinite gradient is expected: the step is skipped and the scale halved.
        checked = records[:, :1] if self.scaler.is_enabled() else records
        bad = (~torch.isfinite(checked)).nonzero()
        if len(bad):
            step, which = bad[0].tolist()
            raise CircuitError(
                f"the {('loss', 'gradient')[which]} became NaN or infinite at step {step + 1} of "
                f"{self.steps} in epoch {epoch + 1}. Lower the learning rate "
                f"({self.recipe.learning_rate}) or lengthen the warm-up. With a folder, the "
                "checkpoint of the epoch before is kept."
            )
        return records


def _to_train(vit: AnyViT, images: ImageSet, recipe: Recipe) -> AnyViT | AdaptedViT:
    """A copy of the model, with an adapter in it for `tune="adapter"`."""
    if recipe.tune != "adapter":
        return copy.deepcopy(vit)
    assert isinstance(vit, ViT)
    seed = seed_of(recipe.seed, 0, 0, Purpose.ADAPTER)
    return AdaptedViT(vit, recipe.adapter_width, class_names=images.class_names, seed=seed)
