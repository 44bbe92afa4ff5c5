"""How a ViT is trained: every number that decides the result, besides model and images."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, no_type_check

from circuitvit.errors import CircuitError, in_short
from circuitvit.files.restoring import MOST
from circuitvit.train.schedule import ScheduleBy, learning_rate_at

Precision = Literal["no", "bf16", "fp16"]
Watched = Literal["accuracy", "loss"]
Tuned = Literal["all", "head", "adapter"]


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay, label smoothing, and random changes of images.

    Attributes:
        epochs: how often every image is seen, at most.
        batch: images a step, over all processes and micro-batches.
        accumulate: micro-batches in which each process goes through its share of a batch; more
            need less memory and give the same gradient.
        learning_rate: its peak, after the warm-up.
        final_learning_rate: where the cosine would end one step after the last.
        schedule_by: whether the learning rate changes with every `step` or every `epoch`.
        weight_decay: of the weights; norms, biases, positions, tokens and constants have none.
        warmup_epochs: epochs of linear warm-up, at most half of all epochs; rounded to whole steps,
            or epochs where the learning rate changes with these.
        label_smoothing: share of the target that is spread evenly over all classes, 0–1.
        clip: largest norm of the gradient of all parameters together.
        augment: whether images are changed at random; the next ones, to `cutmix`, say how.
        translate: largest shift along each axis, as a share of the side; in whole pixels.
        rotate: largest rotation either way, in degrees.
        horizontal_flip: whether every second image, on average, is mirrored; not for digits.
        crop_scale: least share of a picture's area that a random crop keeps; 1 is no crop.
        rand_augment: operations of RandAugment for each picture; they shear,
            turn and change colours, so look whether your classes survive them.
        rand_augment_magnitude: how strong they are, 0–30.
        noise: deviation of Gaussian noise, where pixels are in [0, 1].
        erase: share of images of which a rectangle is erased.
        mixup: α of MixUp; 0 is none.
        cutmix: α of CutMix; with both, each batch draws one of the two.
        drop_path: chance that an image skips the last block's attention, or its MLP; it falls to 0
            towards the first block.
        ema_decay: share of the average of weights that stays at each step; the average is what is
            measured and comes out. 0 is none.
        keep_best: whether the weights after the best epoch are kept too; `patience` implies it.
        patience: stop when so many epochs on end have not beaten the best one; None is never.
        watch: what tells the best epoch, `accuracy` or `loss` on the validation images.
        distill_alpha: share of the labels' cross-entropy where there is a teacher, 0–1.
        distill_temperature: T, which softens the logits of teacher and student.
        tune: what learns: `all` weights, or the linear `head` alone, which suits a pretrained model
            and few images, or the head and an `adapter` after each attention and each MLP.
        adapter_width: numbers a token in each adapter's bottleneck.
        seed: draws the order of the images and their changes, for each epoch anew.
        mixed_precision: `bf16` or `fp16` computes the forward pass so; `fp16` on a GPU only.

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
            raise CircuitError("this Recipe can't be followed: " + "; ".join(problems) + ".")

    @classmethod
    def photos(cls, *, pretrained: bool = False, **changes: Any) -> "Recipe":
        """A recipe for photographs, of which all but the epochs and the batch are DeiT's.

        They are those of Touvron et al. 2021 (table 9) and their code, which timm has too: AdamW
        with a peak of 5e-4 for every 512 images a step, a cosine to a fiftieth of it after 5 epochs
        of warm-up, weight decay 0.05, label smoothing 0.1, mirrored random crops of at least 8% of
        the area, RandAugment (2 operations of magnitude 9), MixUp 0.8, CutMix 1.0, a rectangle
        erased in a quarter of the images, and stochastic depth 0.1. DeiT had 300 epochs of ImageNet
        in batches of 1,024; here it is 100, in batches of 256.

        For a pretrained model the epochs (20), the peak (1e-5 for every 512 images, falling to a
        tenth) and the weight decay (0.1) are those of fine-tuning in DeiT III (Touvron et al.
        2022). A new head learns slowly so: with few images, give a larger `learning_rate`, or
        `tune="head"` with one of some 1e-3.

        Args:
            pretrained: whether the model was trained before.
            **changes: fields that shall be others. A `learning_rate` that isn't given follows the
                batch, and a `final_learning_rate` follows it.

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
        """The learning rate of one step, counted from 0 over the whole training."""
        return learning_rate_at(
            step,
            steps_an_epoch=steps_an_epoch,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            peak=self.learning_rate,
            final=self.final_learning_rate,
            by=self.schedule_by,
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch's weights are kept."""
        return self.keep_best or self.patience is not None


_BATCH_OF_RATES = 512
"""For so many images a step the learning rates below are meant."""
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
    for names, fits, expected in _RANGES:
        for name in names:
            value = getattr(recipe, name)
            if not fits(value):
                yield f"{name} is {in_short(value)}, expected {expected}"
    rates = recipe.final_learning_rate, recipe.learning_rate
    if all(map(_number, rates)) and rates[0] > rates[1] > 0:
        yield "final_learning_rate is {!r}, expected learning_rate, {!r}, or less".format(*rates)


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= sys.float_info.max
    )


def _one_of(kind: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in get_args(kind), f"one of {get_args(kind)}"


_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("epochs", "batch", "accumulate", "adapter_width"),
        lambda value: _count(value, 1),
        "a whole number, at least 1 and below 2¹²⁸",
    ),
    (("seed", "rand_augment"), lambda value: _count(value, 0), "a whole number, 0 to below 2¹²⁸"),
    (
        ("patience",),
        lambda value: value is None or _count(value, 1),
        "None, or a whole number, at least 1",
    ),
    (
        ("rand_augment_magnitude",),
        lambda value: _count(value, 0) and value <= 30,
        "a whole number, 0 to 30",
    ),
    (
        ("learning_rate", "clip", "distill_temperature"),
        lambda value: _number(value) and value > 0,
        "a number above 0",
    ),
    (
        ("weight_decay", "warmup_epochs", "rotate", "final_learning_rate", "noise"),
        _number,
        "0 or more",
    ),
    (("mixup", "cutmix"), _number, "0 or more"),
    (
        ("label_smoothing", "translate", "drop_path", "ema_decay"),
        lambda value: _number(value) and value < 1,
        "a share, 0 to below 1",
    ),
    (
        ("erase", "distill_alpha"),
        lambda value: _number(value) and value <= 1,
        "a share, 0 to 1",
    ),
    (
        ("crop_scale",),
        lambda value: _number(value) and 0 < value <= 1,
        "a share, above 0 to 1",
    ),
    (
        ("augment", "horizontal_flip", "keep_best"),
        lambda value: isinstance(value, bool),
        "True or False",
    ),
    (("mixed_precision",), *_one_of(Precision)),
    (("schedule_by",), *_one_of(ScheduleBy)),
    (("watch",), *_one_of(Watched)),
    (("tune",), *_one_of(Tuned)),
)
