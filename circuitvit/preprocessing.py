"""How pictures become what a model looks at; travels with the model. Knows no torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, no_type_check

from circuitvit.errors import CircuitError

Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
Resize = Literal["shortest", "squash"]


@no_type_check  # it checks its own input, with words for people
@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture before a model sees it; the side in pixels is the model's own.

    The picture is resized to the side ÷ `crop`, its middle is cut out, pixels are scaled to [0, 1]
    and normalised, (x − mean) / std.

    Attributes:
        mean: one value a channel, or one for all.
        std: likewise, > 0.
        interpolation: of the resizing.
        resize: `shortest` keeps the proportions, `squash` makes a square of the whole picture.
        crop: share of the resized picture's side that is kept, in (0, 1].
        class_names: of the model's logits, in their order; None where they are not known.

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
        for name in ("mean", "std"):
            value = getattr(self, name)
            each = value if hasattr(value, "__len__") else (value,)
            object.__setattr__(self, name, tuple(float(number) for number in each))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        found = {
            f"mean is {self.mean}, expected finite numbers": not all(map(math.isfinite, self.mean)),
            f"std is {self.std}, expected finite numbers > 0": not all(
                0 < number < math.inf for number in self.std
            ),
            f"mean has {len(self.mean)} values, std {len(self.std)}": 1
            not in (len(self.mean), len(self.std))
            and len(self.mean) != len(self.std),
            f"interpolation is {self.interpolation!r}, expected one of {get_args(Interpolation)}": (
                self.interpolation not in get_args(Interpolation)
            ),
            f"resize is {self.resize!r}, expected one of {get_args(Resize)}": (
                self.resize not in get_args(Resize)
            ),
            f"crop is {self.crop!r}, expected a share in (0, 1]": not 0 < self.crop <= 1,
            "two classes have the same name": len(set(self.class_names or ()))
            < len(self.class_names or ()),
        }
        problems = [text for text, is_so in found.items() if is_so]
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
            raise CircuitError(f"this is not a preprocessing of circuitvit: {cause}.") from cause
