"""What ImageNet's classes are called: folders bear WordNet ids, models human-readable names."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from circuitvit.images.classes.animals import ANIMALS
from circuitvit.torchvision_ops import register_missing_ops

_WNID = re.compile(r"n\d{8}")


def is_wnid(name: str) -> bool:
    """Whether a class is called by a WordNet id, such as `n01440764`."""
    return _WNID.fullmatch(name) is not None


def described(wnid: str) -> str | None:
    """The synonyms of a WordNet id, `tench, Tinca tinca`; None where they are not known.

    timm has them for all of ImageNet; without it only Tiny-ImageNet's animals are known.
    """
    info = _info()
    if info is not None:
        try:
            return info.label_name_to_description(wnid)
        except KeyError:
            return None
    return next((animal.name for animal in ANIMALS if animal.wnid == wnid), None)


def place_in_imagenet(wnid: str) -> int | None:
    """The class among the 1000 of ImageNet-1k; None where it is none of them or not known."""
    return _places().get(wnid)


def knows_all() -> bool:
    """Whether all of ImageNet's names are there, not the animals' alone."""
    return _info() is not None


@cache
def _info() -> Any:
    register_missing_ops()
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    return ImageNetInfo()


@cache
def _places() -> dict[str, int]:
    info = _info()
    names: Sequence[str] = () if info is None else info.label_names()
    return {wnid: place for place, wnid in enumerate(names)}
