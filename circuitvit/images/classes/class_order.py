"""The order of classes by their names, and a warning where it is doubtful."""

import re
from typing import Any, Literal, get_args

import numpy as np

from circuitvit.errors import in_short, warn
from circuitvit.images.classes.labels import Labelled, some
from circuitvit.preprocessing import natural_key

ClassOrder = Literal["alphabetical", "natural"]
"""`"alphabetical"` has `class10` before `class2`, as Python sorts text; `"natural"` after it."""


def ordered(labelled: Labelled, order: ClassOrder) -> Labelled:
    """The same labels with the classes in another order of their names."""
    labels, names = labelled
    key = natural_key if order == "natural" else str
    places = sorted(range(len(names)), key=lambda place: key(names[place]))
    codes = np.empty(max(len(names), 1), dtype=np.int64)
    codes[places] = np.arange(len(places))
    return np.where(labels < 0, labels, codes[labels.clip(0)]), tuple(names[p] for p in places)


def order_problems(value: Any) -> list[str]:
    """What is wrong with a class order that was asked for."""
    if value is None or value in get_args(ClassOrder):
        return []
    return [f"class_order is {in_short(value)}, expected one of {get_args(ClassOrder)}"]


def warn_of_order(names: tuple[str, ...], *, is_declared: bool, remedy: str) -> None:
    """Warn where classes are in alphabetical order and the natural one is another.

    A model that was trained in the other order would be judged by wrong labels. Names that a source
    declares in such an order are only doubtful if they are numbered, as folders are.
    """
    numbered = len({re.sub(r"\d+", "#", name) for name in names}) == 1
    natural = tuple(sorted(names, key=natural_key))
    if names != tuple(sorted(names)) or names == natural or (is_declared and not numbered):
        return
    at = next(place for place, (a, b) in enumerate(zip(names, natural, strict=True)) if a != b)
    warn(
        f"the classes are taken in alphabetical order ({some(names[: at + 2])}, …), as torchvision "
        f"and datasets do; the natural order is another ({some(natural[: at + 2])}, …). With a "
        f"model that was trained in that one, labels would be wrong. {remedy}"
    )
