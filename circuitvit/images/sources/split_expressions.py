"""Parses split expressions: a source's own splits, or slices of them."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitvit.errors import CircuitError, in_short, reason_of

Split = str | Mapping[str, str]
"""A split expression of `datasets` such as `"train[:2%]"`, or one for each part."""

PARTS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "val|valid|validation|dev",
    "test": "test|testing",
}


def split_of(name: str) -> str | None:
    """The split that a name speaks of in its last such word: `animals_valid` is validation."""
    found = None
    for word in re.findall(r"[a-z]+", name.lower()):
        for split, words in _SPLIT_WORDS.items():
            found = split if re.fullmatch(words, word) else found
    return found


def split_called(name: object) -> str | None:
    """The split that is called so and nothing else, in whatever case: `Valid` is validation."""
    told = name.lower() if isinstance(name, str) else ""
    return next((s for s, words in _SPLIT_WORDS.items() if re.fullmatch(words, told)), None)


def check_places(places: Mapping[Any, Any]) -> None:
    """Refuse a mapping from which a file would be left out.

    Raises:
        CircuitError: a name is no split's, two are of the same split, or something is no path;
            every one is named.
    """
    called = {key: split_called(key) for key in places}
    wrong = [
        f"{in_short(key)} is no split, expected 'train', 'validation' or 'test'"
        for key, split in called.items()
        if split is None
    ]
    for split in sorted({split for split in called.values() if split}):
        keys = [in_short(key) for key, other in called.items() if other == split]
        wrong += [f"{' and '.join(keys)} are the same split"] if len(keys) > 1 else []
    wrong += [
        f"the source of {in_short(key)} is {in_short(place)}, expected a path"
        for key, place in places.items()
        if not isinstance(place, str | os.PathLike)
    ]
    if wrong:
        raise CircuitError(
            f"these sources can't be loaded: {'; '.join(wrong[:5])}. Give each split once, such as "
            "{'train': 'a.parquet', 'test': 'b.parquet'}."
        )


def own_parts(sizes: Mapping[str, int], split: Split | None, source: str) -> dict[str, np.ndarray]:
    """The positions of each part, in a table where the source's splits lie one after another.

    Without an expression, parts are the splits so named (`valid`, `val` and `dev` are validation);
    a single split is `train` whatever its name, and validation images without test images are the
    test images.

    Args:
        sizes: the number of images of each split of the source, in their order.
        split: what is asked for; one expression alone is the training part.
        source: for messages.

    Raises:
        CircuitError: there is nothing to train on, an expression is wrong or has no images, or the
            parts overlap.
    """
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
    if split is None:
        whole = {part: starts[name] + np.arange(sizes[name]) for part, name in _own(sizes, source)}
        if "test" not in whole and "validation" in whole:
            whole["test"] = whole.pop("validation")
        return whole
    asked = {"train": split} if isinstance(split, str) else dict(split)
    problems = [
        f"{in_short(part)} is no part, expected {PARTS}" for part in asked if part not in PARTS
    ]
    if "train" not in asked:
        problems.append("there is no expression for 'train'")
    parts = {}
    for part, expression in asked.items():
        try:
            parts[part] = _positions(expression, sizes, starts)
        except (ValueError, AssertionError) as cause:
            reason = reason_of(cause).split(" Should be one of")[0]  # told for all below
            problems.append(f"{in_short(expression)}: {reason.rstrip('.')}")
    problems += _overlaps(parts, asked)
    if problems:
        raise CircuitError(
            f"this split of {source} can't be made: {'; '.join(problems)}. There are the splits "
            f"{dict(sizes)} (images each); write 'train', 'train[:2%]', 'train[100:200]+test', or "
            "one such expression for each part."
        )
    return parts


def _own(sizes: Mapping[str, int], source: str) -> list[tuple[str, str]]:
    """The parts that a source has, each with the name of its split."""
    if len(sizes) == 1:
        return [("train", next(iter(sizes)))]
    found: dict[str, str] = {}
    for name in sizes:
        part = split_of(name)
        if part is not None and (part not in found or name == part):
            found[part] = name
    if "train" not in found:
        raise CircuitError(
            f"{source} has the splits {sorted(sizes)} but none to train on. Name one of its files "
            "or folders 'train', give a single one, or say which with split."
        )
    return [(part, found[part]) for part in PARTS if part in found]


def _positions(expression: str, sizes: Mapping[str, int], starts: Mapping[str, int]) -> np.ndarray:
    from datasets import ReadInstruction

    aliases = {"train": next(iter(sizes))} if len(sizes) == 1 else {}
    for name in reversed(list(sizes)):  # validation images may be asked for as `val` or `valid`
        words = _SPLIT_WORDS.get(split_of(name) or name, name)
        aliases |= dict.fromkeys(words.split("|"), name)
    aliases |= {name: name for name in sizes}
    lengths = {alias: sizes[name] for alias, name in aliases.items()}
    pieces: list[np.ndarray] = []
    for piece in ReadInstruction.from_spec(expression).to_absolute(lengths):
        start = starts[aliases[piece.splitname]]
        pieces.append(start + np.arange(piece.from_, max(piece.from_, piece.to)))
    found = np.concatenate(pieces)
    if not len(found):
        raise ValueError("it holds no images")
    if len(np.unique(found)) < len(found):
        raise ValueError("it holds some images twice")
    return found


def _overlaps(parts: Mapping[str, np.ndarray], asked: Mapping[str, str]) -> list[str]:
    names = list(parts)
    return [
        f"{one} ({in_short(asked[one])}) and {other} ({in_short(asked[other])}) share {shared} "
        "images"
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        if (shared := len(np.intersect1d(parts[one], parts[other])))
    ]
