"""How a ViT is trained: every number that decides the result, besides model and images."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, no_type_check

from circuitvit.errors import CircuitError

Precision = Literal["no", "bf16"]


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay, label smoothing, and small random moves.

    Attributes:
        epochs: how often every image is seen.
        batch: images a step, over all processes.
        learning_rate: its peak, after the warm-up.
        weight_decay: of the weights; norms, biases, positions, tokens and constants have none.
        warmup_epochs: epochs of linear warm-up, at most half of all epochs.
        label_smoothing: share of the target that is spread evenly over all classes, 0–1.
        clip: largest norm of the gradient of all parameters together.
        augment: whether images are moved at random; the next three say how.
        translate: largest shift along each axis, as a share of the side; in whole pixels.
        rotate: largest rotation either way, in degrees.
        horizontal_flip: whether every second image, on average, is mirrored; not for digits.
        seed: draws the order of the images and their moves, for each epoch anew.
        mixed_precision: `"bf16"` computes the forward pass in bfloat16.

    Raises:
        CircuitError: a value is out of range; every one is named.
    """

    epochs: int = 60
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    label_smoothing: float = 0.1
    clip: float = 1.0
    augment: bool = True
    translate: float = 0.1
    rotate: float = 10.0
    horizontal_flip: bool = False
    seed: int = 0
    mixed_precision: Precision = "no"

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise CircuitError("this Recipe can't be followed: " + "; ".join(problems) + ".")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def learning_rate_at(self, step: int, *, steps_an_epoch: int) -> float:
        """The learning rate of one step, counted from 0 over the whole training.

        It rises in equal steps, reaches its peak at the last step of the warm-up, and falls along
        half a cosine that would reach 0 one step after the last.
        """
        total = self.epochs * steps_an_epoch
        warmup = round(min(self.warmup_epochs, self.epochs / 2) * steps_an_epoch)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / (total - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _problems(recipe: Recipe) -> Iterator[str]:
    for names, fits, expected in _RANGES:
        for name in names:
            value = getattr(recipe, name)
            if not fits(value):
                yield f"{name} is {value!r}, expected {expected}"


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("epochs", "batch"), lambda value: _count(value, 1), "a whole number, at least 1"),
    (("seed",), lambda value: _count(value, 0), "a whole number, at least 0"),
    (("learning_rate", "clip"), lambda value: _number(value) and value > 0, "a number above 0"),
    (("weight_decay", "warmup_epochs", "rotate"), _number, "0 or more"),
    (
        ("label_smoothing", "translate"),
        lambda value: _number(value) and value < 1,
        "a share, 0 to below 1",
    ),
    (
        ("mixed_precision",),
        lambda value: value in get_args(Precision),
        f"one of {get_args(Precision)}",
    ),
)
