"""Preprocessing of pictures for a model; saved with the model. Imports no torch."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args, no_type_check

from circuitvit.errors import CircuitError, in_short, reason_of

Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
Resize = Literal["shortest", "squash"]


_LONG = 1024


def class_name(name: Any) -> str:
    r"""A class's name as it is kept and compared: accents are composed with their letters (NFC).

    macOS stores `é` as two characters, other systems as one. Every name of a class goes through
    here, so that `==` finds what people see as the same. What is no text in a folder's name, and
    could not be saved, is spelled out: `caf\udce9`.
    """
    is_long = isinstance(name, int) and name.bit_length() > _LONG  # too long for Python to write
    text = unicodedata.normalize("NFC", in_short(name) if is_long else str(name))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True)
class Preprocessing:
    """The processing of a picture before a model; the side in pixels is the model's own.

    The picture is resized to the side ÷ `crop`, its middle is cut out, pixels are scaled to [0, 1]
    and normalised, (x − mean) / std. The middle is rounded as timm and torchvision round it; where
    an odd number of pixels is cut off, transformers' processors lie one pixel beside it.

    Attributes:
        mean: one value a channel, or one for all.
        std: likewise, > 0, of 1e-6 to 1e6.
        interpolation: of the resizing.
        resize: `shortest` keeps the proportions, `squash` makes a square of the whole picture.
        crop: share of the resized picture's side that is kept, in (0, 1], at least 0.01.
        class_names: of the model's logits, in their order, kept as `class_name` has them; None
            where they are not known.

    Raises:
        CircuitError: a value is wrong; every problem is named.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    crop: float = 1.0
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("mean", "std"):
            numbers = _numbers(getattr(self, name))
            if numbers:
                object.__setattr__(self, name, numbers)
            else:
                problems.append(
                    f"{name} is {in_short(getattr(self, name))}, expected a number or one for each "
                    "channel"
                )
        problems += [] if problems else _number_problems(self.mean, self.std)
        problems += _choice_problems(self.interpolation, self.resize, self.crop)
        if not problems:
            object.__setattr__(self, "crop", float(self.crop))
        if self.class_names is not None:
            listed = isinstance(self.class_names, Iterable) and not isinstance(
                self.class_names, str | bytes | Mapping
            )
            names = tuple(self.class_names) if listed else ()
            if listed and not any(isinstance(name, _NO_NAMES) for name in names):
                object.__setattr__(self, "class_names", tuple(map(class_name, names)))
                problems += _name_problems(self.class_names)
            else:
                told = in_short(self.class_names)
                problems.append(f"class_names is {told}, expected a list of names")
        if problems:
            raise CircuitError("a Preprocessing cannot be made: " + "; ".join(problems) + ".")

    def resized_side(self, image_size: int) -> int:
        """The side to resize to, of which `image_size` is kept."""
        return math.floor(image_size / self.crop)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """Make one from what `as_dict` gave.

        Raises:
            CircuitError: a field is unknown or wrong.
        """
        try:
            if not isinstance(values, Mapping):
                raise TypeError(f"it is a {type(values).__name__}, not named fields")
            return cls(**values)
        except TypeError as cause:
            raise CircuitError(
                f"this is not a preprocessing of circuitvit: {reason_of(cause)}."
            ) from cause


def natural_key(name: str) -> tuple[list[str], str]:
    """A key that sorts the numbers in names by value: `checkpoint-500` before `checkpoint-1000`."""
    parts = re.split(r"([0-9]+)", name)  # texts and numbers in turn, so places compare alike
    # As texts, since Python makes no number of thousands of digits: the longer one is the larger.
    numbers = (part.lstrip("0") for part in parts[1::2])
    parts[1::2] = [f"{len(number):09}{number}" for number in numbers]
    return parts, name


def misfits(seen: Preprocessing | None, *, channels: int, classes: int) -> list[str]:
    """Why a preprocessing can't be that of a model of so many channels and classes."""
    return [*_channel_misfits(seen, channels), *_class_misfits(seen, classes)]


def fitting(
    seen: object, *, classes: int, channels: int | None = None
) -> tuple[Preprocessing | None, list[str]]:
    """The part of a preprocessing that fits a model, and a sentence for each other part.

    Names that aren't one for each class are left out, and the rest stays. Without mean and
    deviation of its channels, where they are asked for, nothing is left.

    Raises:
        CircuitError: it is something else; people assign what they like to `vit.preprocessing`.
    """
    if seen is not None and not isinstance(seen, Preprocessing):
        raise CircuitError(
            f"the model's preprocessing is {in_short(seen)}, expected a cv.Preprocessing or None. "
            "Assign one to vit.preprocessing."
        )
    if channels is not None and (problems := _channel_misfits(seen, channels)):
        return None, [f"its own preprocessing is left out: {problem}" for problem in problems]
    if seen is not None and (problems := _class_misfits(seen, classes)):
        left = replace(seen, class_names=None)
        return left, [f"its own class names are left out: {problem}" for problem in problems]
    return seen, []


def _channel_misfits(seen: Preprocessing | None, channels: int) -> list[str]:
    if seen is None or {len(seen.mean), len(seen.std)} <= {1, channels}:
        return []
    counts = f"{len(seen.mean)} and {len(seen.std)} values for {channels} channels"
    return [f"mean and std have {counts}"]


def _class_misfits(seen: Preprocessing | None, classes: int) -> list[str]:
    if seen is None or seen.class_names is None or len(seen.class_names) == classes:
        return []
    return [f"there are {len(seen.class_names)} class names for {classes} classes"]


FAR = 2.0
"""No mean of pixels that were scaled to [0, 1] is so large, in whatever way they are shifted."""

_LEAST_STD, _MOST_STD = 1e-6, 1e6
"""Beyond these, normalised pixels are infinite or all the same."""

_LEAST_CROP = 0.01
"""Below this, pictures are resized to a hundred times the side that is kept."""

_NO_NAMES = (list, tuple, Mapping, bytes, type(None), bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers of a list, an array, or one number; None for anything else, nothing for none."""
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
        listed = plain if isinstance(plain, list | tuple) else [plain]
        each = [number.item() if hasattr(number, "item") else number for number in listed]
        return tuple(map(float, each)) if all(map(_is_number, each)) else None
    except (OverflowError, RuntimeError, ValueError):  # too large, or an array of several
        return None


def _number_problems(mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    several = 1 not in (len(mean), len(std))
    found = {
        f"mean is {in_short(mean)}, expected finite numbers": not all(map(math.isfinite, mean)),
        f"mean is {in_short(mean)}, expected that of pixels in [0, 1]; divide by 255": any(
            math.isfinite(x) and abs(x) > FAR for x in mean
        ),
        f"std is {in_short(std)}, expected finite numbers > 0, {_LEAST_STD:zg} to {_MOST_STD:zg}": (
            not all(_LEAST_STD <= x <= _MOST_STD for x in std)
        ),
        f"mean has {len(mean)} values, std {len(std)}": several and len(mean) != len(std),
    }
    return [text for text, is_so in found.items() if is_so]


def _is_one_of(value: Any, choices: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in choices  # an array is compared item by item


def _choice_problems(interpolation: Any, resize: Any, crop: Any) -> list[str]:
    found = {
        f"interpolation is {in_short(interpolation)}, expected one of {get_args(Interpolation)}": (
            not _is_one_of(interpolation, get_args(Interpolation))
        ),
        f"resize is {in_short(resize)}, expected one of {get_args(Resize)}": (
            not _is_one_of(resize, get_args(Resize))
        ),
        f"crop is {in_short(crop)}, expected a share in (0, 1], at least {_LEAST_CROP:zg}": (
            not _is_number(crop) or not _LEAST_CROP <= crop <= 1
        ),
    }
    return [text for text, is_so in found.items() if is_so]


def _name_problems(names: tuple[str, ...]) -> list[str]:
    same = sorted(name for name, count in Counter(names).items() if count > 1)
    told = ", ".join(name[:80] for name in same[:5])
    return [f"two classes have the same name ({told})"] if same else []
