"""The recipe of a training: every number that decides the result, besides model and images.

Also the seeds of everything that a training draws.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal, get_args, no_type_check

import numpy as np

from circuitvit.errors import CircuitError, in_short
from circuitvit.files.restoring import MOST

ScheduleBy = Literal["step", "epoch"]
Precision = Literal["no", "bf16", "fp16"]
Watched = Literal["accuracy", "loss"]
Tuned = Literal["all", "head", "adapter"]


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training with AdamW: its schedule, regularisation and augmentation.

    The learning rate has a linear warm-up and a cosine decay.

    Attributes:
        epochs: largest number of epochs; `patience` can stop earlier.
        batch: images a step, over all processes and micro-batches.
        accumulate: micro-batches into which each process splits its share of a batch; more need
            less memory and give the same gradient.
        learning_rate: its peak, after the warm-up.
        final_learning_rate: the rate that the cosine would reach one step after the last.
        schedule_by: whether the learning rate changes with every `step` or every `epoch`.
        weight_decay: of the weights; norms, biases, positions, tokens and constants don't decay.
        warmup_epochs: epochs of linear warm-up, at most half of all epochs; rounded to whole steps,
            or epochs where the learning rate changes with these.
        label_smoothing: share of the target that is spread evenly over all classes, 0–1.
        clip: largest norm of the gradient of all parameters together.
        augment: whether images are changed at random; the fields up to `cutmix` say how.
        translate: largest shift along each axis, as a share of the side; in whole pixels.
        rotate: largest rotation either way, in degrees.
        horizontal_flip: whether every second image, on average, is mirrored; not for digits.
        crop_scale: least share of a picture's area that a random crop keeps; 1 is no crop.
        rand_augment: operations of RandAugment for each picture. They shear, rotate and change
            colours, so check that your classes stay recognisable.
        rand_augment_magnitude: how strong they are, 0–30.
        noise: standard deviation of Gaussian noise, where pixels are in [0, 1].
        erase: share of images of which a rectangle is erased.
        mixup: α of MixUp; 0 is none.
        cutmix: α of CutMix; with both, each batch draws one of the two.
        drop_path: probability that an image skips the last block's attention, or its MLP; it falls
            linearly to 0 in the first block.
        ema_decay: decay of the exponential moving average of the weights. The averaged model is
            the one that is measured and returned. 0 is no average.
        keep_best: whether the weights after the best epoch are kept too; `patience` implies it.
        patience: stop after this number of epochs without a better one; None is never.
        watch: what the best epoch is chosen by, `accuracy` or `loss` on the validation images.
        distill_alpha: weight of the labels' cross-entropy with a teacher, 0–1.
        distill_temperature: T, by which the logits of teacher and student are divided.
        tune: what is trained: `all` weights; the linear `head` alone, which suits a pretrained
            model and few images; or the head and an `adapter` after each attention and each MLP.
        adapter_width: width of each adapter's bottleneck.
        seed: seeds the order of the images and their changes, anew in each epoch.
        mixed_precision: dtype of the forward pass, `bf16` or `fp16`; `fp16` on a GPU only.

    Raises:
        CircuitError: a value is out of range; every one is named.
    """

    epochs: int = 60
    batch: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    schedule_by: ScheduleBy = "step"
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    label_smoothing: float = 0.1
    clip: float = 1.0
    augment: bool = True
    translate: float = 0.1
    rotate: float = 10.0
    horizontal_flip: bool = False
    crop_scale: float = 1.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    noise: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    keep_best: bool = False
    patience: int | None = None
    watch: Watched = "accuracy"
    distill_alpha: float = 0.5
    distill_temperature: float = 2.0
    tune: Tuned = "all"
    adapter_width: int = 16
    seed: int = 0
    mixed_precision: Precision = "no"

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise CircuitError("invalid Recipe: " + "; ".join(problems) + ".")

    @classmethod
    def photos(cls, *, pretrained: bool = False, **changes: Any) -> "Recipe":
        """DeiT's recipe for photographs, with fewer epochs and smaller batches.

        The values are those of Touvron et al. 2021 (table 9) and their code, also in timm: AdamW
        with a peak of 5e-4 for every 512 images a step, a cosine to a fiftieth of it after 5 epochs
        of warm-up, weight decay 0.05, label smoothing 0.1, mirrored random crops of at least 8% of
        the area, RandAugment (2 operations of magnitude 9), MixUp 0.8, CutMix 1.0, a rectangle
        erased in a quarter of the images, and stochastic depth 0.1. DeiT had 300 epochs of ImageNet
        in batches of 1,024; here it is 100, in batches of 256.

        For a pretrained model the epochs (20), the peak (1e-5 for every 512 images, falling to a
        tenth) and the weight decay (0.1) are those of fine-tuning in DeiT III (Touvron et al.
        2022). A new head learns slowly at this rate: with few images, give a larger
        `learning_rate`, or `tune="head"` with one of about 1e-3.

        Args:
            pretrained: whether the model was trained before.
            **changes: fields with other values. A `learning_rate` that isn't given is proportional
                to the batch, and a `final_learning_rate` to the learning rate.

        Raises:
            CircuitError: a value is out of range; every one is named.
        """
        preset: dict[str, Any] = {**_PHOTOS, **(_PRETRAINED if pretrained else {})}
        chosen = {**preset, **changes}
        peak, end = preset["learning_rate"], preset["final_learning_rate"]
        if "learning_rate" not in changes and _count(chosen["batch"], 1):
            chosen["learning_rate"] = peak * chosen["batch"] / _BATCH_OF_RATES
        if "final_learning_rate" not in changes and _number(chosen["learning_rate"]):
            chosen["final_learning_rate"] = chosen["learning_rate"] * end / peak
        return cls(**chosen)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def learning_rate_at(self, step: int, *, steps_an_epoch: int) -> float:
        """The learning rate of one step, counted from 0 over the whole training.

        With T steps in all and W of them warm-up, step s has the rate
        peak · (s + 1) / W while s < W, and then
        final + (peak − final) · (1 + cos(π (s − W) / (T − W))) / 2.

        With `schedule_by="epoch"`, s, T and W count epochs. W is rounded to a whole number and is
        at most half of T, rounded down; so a training of one step has no warm-up.
        """
        if self.schedule_by == "epoch":
            step, steps_an_epoch = step // steps_an_epoch, 1
        total = self.epochs * steps_an_epoch
        warmup = min(round(min(self.warmup_epochs, self.epochs) * steps_an_epoch), total // 2)
        peak, final = self.learning_rate, self.final_learning_rate
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / (total - warmup)
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch's weights are kept."""
        return self.keep_best or self.patience is not None


class Purpose(IntEnum):
    """The purpose of a seed. Each has its own random stream, so a new one changes no other."""

    CROP_AND_RANDAUGMENT = 1
    NOISE_AND_ERASE = 2
    MIX = 3
    DROPPED_PATHS = 4
    ADAPTER = 5


def seed_of(*key: int) -> int:
    """A seed below 2³² that depends on all of the numbers.

    What is drawn for an image depends on the recipe's seed, the epoch and the image's place in the
    epoch's order; what is drawn for a step on seed, epoch and step. So a training that is resumed,
    or split over more processes, draws the same.
    """
    return int(np.random.SeedSequence(list(key)).generate_state(1)[0])


_BATCH_OF_RATES = 512
"""The learning rates below are for this number of images a step."""
_PHOTOS: dict[str, Any] = {
    "epochs": 100, "batch": 256, "learning_rate": 5e-4, "final_learning_rate": 1e-5,
    "weight_decay": 0.05, "warmup_epochs": 5, "label_smoothing": 0.1, "translate": 0.0,
    "rotate": 0.0, "horizontal_flip": True, "crop_scale": 0.08, "rand_augment": 2,
    "rand_augment_magnitude": 9, "mixup": 0.8, "cutmix": 1.0, "erase": 0.25, "drop_path": 0.1,
}  # fmt: skip
_PRETRAINED: dict[str, Any] = {
    "epochs": 20, "learning_rate": 1e-5, "final_learning_rate": 1e-6, "weight_decay": 0.1,
}  # fmt: skip


def _problems(recipe: Recipe) -> Iterator[str]:
    for names, (fits, expected) in _RANGES.items():
        for name in names.split():
            if not fits(value := getattr(recipe, name)):
                yield f"{name} is {in_short(value)}, expected {expected}"
    for name, kind in _CHOICES.items():
        if (value := getattr(recipe, name)) not in get_args(kind):
            yield f"{name} is {in_short(value)}, expected one of {get_args(kind)}"
    rates = recipe.final_learning_rate, recipe.learning_rate
    if all(map(_number, rates)) and rates[0] > rates[1] > 0:
        yield "final_learning_rate is {!r}, expected learning_rate, {!r}, or less".format(*rates)


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST


def _number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and 0 <= value <= sys.float_info.max


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs batch accumulate adapter_width": (
        lambda value: _count(value, 1),
        "a whole number, at least 1 and below 2¹²⁸",
    ),
    "seed rand_augment": (lambda value: _count(value, 0), "a whole number, 0 to below 2¹²⁸"),
    "patience": (
        lambda value: value is None or _count(value, 1),
        "None, or a whole number, at least 1",
    ),
    "rand_augment_magnitude": (
        lambda value: _count(value, 0) and value <= 30,
        "a whole number, 0 to 30",
    ),
    "learning_rate clip distill_temperature": (
        lambda value: _number(value) and value > 0,
        "a number above 0",
    ),
    "weight_decay warmup_epochs rotate final_learning_rate noise mixup cutmix": (
        _number,
        "0 or more",
    ),
    "label_smoothing translate drop_path ema_decay": (
        lambda value: _number(value) and value < 1,
        "a share, 0 to below 1",
    ),
    "erase distill_alpha": (lambda value: _number(value) and value <= 1, "a share, 0 to 1"),
    "crop_scale": (lambda value: _number(value) and 0 < value <= 1, "a share, above 0 to 1"),
    "augment horizontal_flip keep_best": (lambda value: isinstance(value, bool), "True or False"),
}
_CHOICES = {
    "mixed_precision": Precision,
    "schedule_by": ScheduleBy,
    "watch": Watched,
    "tune": Tuned,
}
