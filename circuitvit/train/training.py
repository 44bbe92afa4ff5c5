"""Training a ViT on images in memory, on one device or several.

The recipe is the whole of it, besides a teacher. Runs under `accelerate launch` and torchrun too:
each process takes its share of every batch.
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
from circuitvit.train.checkpoint import Checkpoint
from circuitvit.train.distillation import Teacher, loss_of
from circuitvit.train.drop_path import DroppedPaths, dropped_paths
from circuitvit.train.ema import Average
from circuitvit.train.gradient_flow import GradientFlow
from circuitvit.train.history_entry import with_history
from circuitvit.train.optimizer import adamw, learning
from circuitvit.train.preconditions import carried, check, run_of
from circuitvit.train.recipe import Recipe
from circuitvit.train.result import AnyViT, Model, Training
from circuitvit.train.seeds import Purpose, seed_of
from circuitvit.train.stopping import best_epoch, is_over
from circuitvit.train.tensorboard import curves_in

CHECKPOINT = "checkpoint.safetensors"
LINES_AN_EPOCH = 20
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@in_default_modes
def train(
    vit: Model,
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    teacher: nn.Module | None = None,
    tensorboard: str | Path | None = None,
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
) -> Training[Model]:
    """Train a copy of a ViT.

    Each epoch draws a new order; the images that don't fill a batch sit that epoch out. On a CPU
    the same arguments and number of threads give the same weights to the bit, resumed or not.

    Args:
        vit: the model to start from; it is left as it is. Its head is trained on, so it has to be
            of the images' classes: `with_new_head` makes one for others.
        training: images to learn from.
        validation: images to measure by after each epoch. They tell which epoch is best and, with
            `patience`, when to stop; no weight depends on them otherwise.
        recipe: how to train.
        folder: where to keep `checkpoint.safetensors`, written after each epoch. If there is one of
            this very training, it is resumed.
        teacher: a module from images to logits of the same classes, to learn from as well; it is
            left as it is.
        tensorboard: a folder for TensorBoard's curves, a point an epoch; needs
            `circuitvit[tensorboard]`. A resumed training goes on with them.
        progress: whether to draw a progress bar; by default on a terminal only.
        log: called with about 20 lines an epoch, such as `print`, where no bar is drawn.

    Raises:
        CircuitError: model, images, recipe and teacher don't fit, the folder holds another training
            or half a checkpoint or can't be written to, TensorBoard is missing, or the loss or its
            gradient is not finite.
    """
    # Else processes that torchrun starts on a machine without a GPU don't find each other.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check(vit, training, validation, recipe, teacher, accelerator)
    images = training.images[:0].to(accelerator.device)
    taught_by = None if teacher is None else Teacher(teacher, images)
    loop = _Loop(vit, training, validation, recipe, taught_by, accelerator)
    run = run_of(vit, training, validation, recipe, taught_by)
    path = None if folder is None else Path(folder) / CHECKPOINT
    main = accelerator.is_main_process
    if path is not None and main:
        check_writable(path)
    alone = held(path, "a training") if path is not None and main else nullcontext()
    show = (sys.stderr.isatty() if progress is None else progress) and main
    loop.log = log if main and not show else None
    [loop.is_told] = broadcast_object_list([loop.log is not None])
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with alone, torch.random.fork_rng(devices):
        if path is not None and path.exists():
            checkpoint = Checkpoint.load(path)
            checkpoint.check_run(run, path)
            loop.restore(checkpoint)
        loop.run(tensorboard, run, path, show=show)
    result = loop.result(next(vit.parameters()).device)
    return with_history(result, vit, run, recipe, teacher)


class _Loop:
    """A copy of the model with its optimizer, and the epochs that change them."""

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
        self.model.preprocessing = carried(vit, training)
        self.average = Average(self.model, recipe.ema_decay) if recipe.ema_decay else None
        self.optimizer = adamw(self.model, recipe)
        taught = {id(p) for p in learning(self.model, recipe).values()}
        self.frozen = [p for p in self.model.parameters() if id(p) not in taught]
        for parameter in self.frozen:  # no gradient is computed, nor shared between processes
            parameter.requires_grad_(False)
        self.flow = GradientFlow(self.model)
        self.steps = len(training) // recipe.batch
        half = recipe.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=half)
        self.history: tuple[dict[str, Any], ...] = ()
        self.best: dict[str, Tensor] = {}
        self.dropped: DroppedPaths | None = None
        self.log: Callable[[str], None] | None = None  # of the main process
        self.is_told = False
        # `forward` gives the logits of `model`, in whatever wrapper the processes need.
        self.forward, self.stepper = accelerator.prepare(self.model, self.optimizer)

    @property
    def outcome(self) -> AnyViT | AdaptedViT:
        """The model that is measured and comes out."""
        return self.model if self.average is None else cast(AnyViT, self.average.model)

    @property
    def body(self) -> AnyViT:
        """What has the blocks."""
        return self.model.backbone if isinstance(self.model, AdaptedViT) else self.model

    def run(
        self, tensorboard: str | Path | None, run: dict[str, Any], path: Path | None, *, show: bool
    ) -> None:
        """Train epoch by epoch, each with its checkpoint, until it is over."""
        main = self.accelerator.is_main_process
        total, done = self.recipe.epochs * self.steps, len(self.history) * self.steps
        with (
            dropped_paths(self.body, self.recipe) as self.dropped,
            curves_in(tensorboard, self.history, main=main) as curves,
            progress_bar("training", total, done=done, show=show) as step_done,
        ):
            while not is_over(self.history, self.recipe):
                epoch = len(self.history)
                self.take_down(self.epoch(epoch, step_done))
                curves(self.history[-1])
                if path is not None and main:
                    self.checkpoint(run).save(path)
                self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands."""
        checkpoint.restore(self.model, self.optimizer)
        self.history, self.best = checkpoint.history, checkpoint.part("best")
        if self.average is not None:
            self.average.restore(checkpoint.part("average"))
        scale = checkpoint.part("scaler")
        if scale:
            state = {"scale": scale["scale"].item()}
            state["_growth_tracker"] = int(scale["_growth_tracker"].item())
            self.scaler.load_state_dict(self.scaler.state_dict() | state)

    def checkpoint(self, run: dict[str, Any]) -> Checkpoint:
        """Where the training stands."""
        more = {"best": self.best}
        if self.average is not None:
            more["average"] = self.average.model.state_dict()
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            more["scaler"] = {
                n: torch.tensor(state[n], dtype=torch.float64) for n in ("scale", "_growth_tracker")
            }
        return Checkpoint.of(run, self.history, self.model, self.optimizer, more)

    def take_down(self, entry: dict[str, Any]) -> None:
        """Add an epoch to the history, and keep its weights if it is the best one so far.

        It's the main process's entry, so that all stop at the same epoch: on GPUs, figures can
        differ in the last digit.
        """
        self.history = (*self.history, *broadcast_object_list([entry]))
        if self.recipe.keeps_best and best_epoch(self.history, self.recipe) == len(self.history):
            self.best = {n: t.detach().cpu().clone() for n, t in self.outcome.state_dict().items()}

    def result(self, device: torch.device) -> Training[Any]:
        """What came out, on a device."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        vit, best = self.outcome.to(device).eval(), None
        if self.best:
            best = copy.deepcopy(vit)
            best.load_state_dict(self.best)
        number = best_epoch(self.history, self.recipe)
        assert number is not None
        return Training(vit, self.history, best, number)

    def epoch(self, epoch: int, step_done: Callable[..., None]) -> dict[str, Any]:
        """See every image once and tell how it went; all it draws comes from seed and epoch."""
        began, recipe, device = time.perf_counter(), self.recipe, self.accelerator.device
        torch.manual_seed(seed_of(recipe.seed, epoch))  # for layers that draw
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
            self._say(epoch, records, rate)
        loss, norm = self._means(torch.stack(records), epoch)
        held_out = accuracy(self.outcome, self.validation.images.to(device), self.validation.labels)
        entry = {
            "epoch": epoch + 1,
            "loss": loss,
            "validation_accuracy": held_out.top1,
            "validation_loss": held_out.loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "gradients": self.flow.taken(),
            "seconds": time.perf_counter() - began,
        }
        if self.log is not None:
            self.log(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:z.4f}, validation accuracy "
                f"{held_out.top1:z.2%}, loss {held_out.loss:z.4f}; {entry['seconds']:z.1f} s"
            )
        return entry

    def _say(self, epoch: int, records: list[Tensor], rate: float) -> None:
        """A line at every twentieth of an epoch, but for its last step, after which comes more.

        Raises:
            CircuitError: a loss or gradient was not finite; all processes look, so all end alike.
        """
        done = len(records)
        parts = [LINES_AN_EPOCH * number // self.steps for number in (done - 1, done)]
        if self.is_told and parts[0] < parts[1] < LINES_AN_EPOCH:
            loss, norm = self._finite(torch.stack(records), epoch)[-1].tolist()
            if self.log is not None:
                self.log(
                    f"epoch {epoch + 1}/{self.recipe.epochs}, step {done}/{self.steps}: "
                    f"loss {loss:z.4f}, gradient {norm:z.3g}, learning rate {rate:z.3g}"
                )

    def _step(self, batches: EpochBatches, step: int, rate: float) -> Float[Tensor, "2"]:
        """One step on this process's share of a batch: the loss and the gradient's norm."""
        accelerator, recipe = self.accelerator, self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = torch.arange(recipe.batch)[accelerator.process_index :: accelerator.num_processes]
        factors = None if self.dropped is None else self.dropped.drawn(batches.epoch, step)
        losses, parts = [], mine.tensor_split(recipe.accumulate)
        for number, rows in enumerate(parts, 1):
            if self.dropped is not None and factors is not None:
                self.dropped.choose(factors, rows)
            last = number == len(parts)
            # Processes tell each other their gradients once a step.
            with nullcontext() if last else accelerator.no_sync(self.forward):
                loss = self._loss(batches, step, rows)
                if len(parts) > 1:
                    loss = loss * (len(rows) / len(mine))
                accelerator.backward(self.scaler.scale(loss))
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        self.flow.record()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)
        assert norm is not None
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
        half = HALVES.get(recipe.mixed_precision)
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            logits = self.forward(images)
            taught = None if self.teacher is None else self.teacher.logits(images)
        return loss_of(logits, targets, taught, recipe)

    def _means(self, records: Float[Tensor, "step 2"], epoch: int) -> tuple[float, float | None]:
        """An epoch's mean loss and gradient norm; looked at once, so that a GPU need not wait."""
        records = self._finite(records, epoch)
        norms = records[:, 1][torch.isfinite(records[:, 1])]
        return records[:, 0].mean().item(), norms.mean().item() if len(norms) else None

    def _finite(self, records: Float[Tensor, "step 2"], epoch: int) -> Float[Tensor, "step 2"]:
        """The mean over the processes.

        Raises:
            CircuitError: a loss or gradient was not finite. The epoch is lost, the checkpoint of
                the one before is kept.
        """
        records = cast(Tensor, self.accelerator.reduce(records, "mean"))
        # In fp16 a gradient too large is no fault: the step is skipped and the scale halved.
        looked_at = records[:, :1] if self.scaler.is_enabled() else records
        bad = (~torch.isfinite(looked_at)).nonzero()
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
    """A copy of the model, with an adapter in it if that is what learns."""
    if recipe.tune != "adapter":
        return copy.deepcopy(vit)
    assert isinstance(vit, ViT)
    seed = seed_of(recipe.seed, 0, 0, Purpose.ADAPTER)
    return AdaptedViT(vit, recipe.adapter_width, class_names=images.class_names, seed=seed)
