"""Labels: coding them, keeping some classes, and matching them to a model's classes by name."""

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from circuitvit.errors import CircuitError
from circuitvit.images.animals import ANIMALS

UNLABELLED, LEFT_OUT = -1, -2
"""Codes of images without a label, and of images whose class was not asked for."""

Labelled = tuple[np.ndarray, tuple[str, ...]]
"""The class of each image [image], int64, or one of the codes above; and the classes' names."""

Classes = str | Sequence[str | int]
"""Which classes: `"animals"`, or names and indices in the order that they shall have."""


def coded(values: Sequence[Any], names: Sequence[str] | None = None) -> Labelled:
    """Labels as classes from 0.

    Args:
        values: the labels as they are stored: whole numbers, text or truth values; None and numbers
            below 0, as the hub's hidden labels have, are images without a label.
        names: the classes' names, where the labels are their indices; by default the classes are
            the values that occur, in order, and so called.

    Raises:
        CircuitError: a label has no name.
    """
    missing = [value is None or (not isinstance(value, str) and value < 0) for value in values]
    pairs = list(zip(values, missing, strict=True))
    if names is None:
        found = sorted({value for value, none in pairs if not none})
        codes = {value: code for code, value in enumerate(found)}
        labels = [UNLABELLED if none else codes[value] for value, none in pairs]
        return np.array(labels, dtype=np.int64), tuple(str(value) for value in found)
    if any(isinstance(value, str) for value in values):
        return _coded_text(values, tuple(names))
    labels = np.array([UNLABELLED if none else value for value, none in pairs], dtype=np.int64)
    if labels.size and labels.max() >= len(names):
        raise CircuitError(
            f"labels go up to {labels.max()}, but there are {len(names)} class names. Give a name "
            "for each class, from class 0 on."
        )
    return labels, tuple(map(str, names))


def _coded_text(values: Sequence[Any], names: tuple[str, ...]) -> Labelled:
    codes = {name: code for code, name in enumerate(names)}
    unknown = sorted({str(v) for v in values if v is not None and v not in codes})
    if unknown:
        raise CircuitError(
            f"the labels {_some(unknown)} are no class names; these are {_some(names)}. Name each."
        )
    labels = [UNLABELLED if value is None else codes[value] for value in values]
    return np.array(labels, dtype=np.int64), names


def selected(labelled: Labelled, classes: Classes) -> Labelled:
    """Keep some classes, relabelled 0, 1, … in the order given; the others are left out.

    `"animals"` are the 58 of Tiny-ImageNet, by their wnids; they get human-readable names.

    Raises:
        CircuitError: a class is unknown, or named twice, or named and has no images.
    """
    labels, names = labelled
    if isinstance(classes, str):
        if classes != "animals":
            raise CircuitError(
                f"classes is {classes!r}, expected 'animals' or a list of class names or indices, "
                f"such as [{classes!r}]."
            )
        wnids = [animal.wnid for animal in ANIMALS]
        if not set(wnids) & set(names):
            raise CircuitError(
                "classes is 'animals', which are classes of Tiny-ImageNet under their wnids, such "
                f"as {wnids[0]!r}, but the data have {_some(names)}. Name some of these."
            )
        places = _places(wnids, names)
        kept = tuple(animal.name for animal in ANIMALS)
    else:
        places = _places(classes, names)
        kept = tuple(names[place] for place in places)
        if empty := [names[place] for place in places if place not in labels]:
            raise CircuitError(f"there are no images of {_some(empty)}. Leave these classes out.")
    codes = np.full(len(names), LEFT_OUT)
    codes[places] = np.arange(len(places))
    return np.where(labels < 0, labels, codes[labels.clip(0)]), kept


def _places(classes: Sequence[str | int], names: tuple[str, ...]) -> list[int]:
    found = [_place(asked, names) for asked in classes]
    problems = []
    if unknown := [asked for asked, place in zip(classes, found, strict=True) if place is None]:
        problems.append(
            f"{_some(unknown)} are not there; the data have {_some(names)}"
            f"{_nearest(unknown, names)}"
        )
    places = [place for place in found if place is not None]
    if twice := sorted({names[place] for place in places if places.count(place) > 1}):
        problems.append(f"{_some(twice)} are named twice")
    if not len(classes):
        problems.append("none is named")
    if problems:
        raise CircuitError(
            f"these classes can't be kept: {'; '.join(problems)}. Give names or indices below "
            f"{len(names)}, each once."
        )
    return places


def _place(asked: Any, names: tuple[str, ...]) -> int | None:
    """The place of a class, by its name or index; a name wins, as a class may be called `3`."""
    if asked in names:
        return names.index(asked)
    if isinstance(asked, str):  # the command line gives indices as text
        asked = int(asked) if asked.isdecimal() else None
    whole = isinstance(asked, int | np.integer) and not isinstance(asked, bool)
    return int(asked) if whole and 0 <= asked < len(names) else None


def matched(labelled: Labelled, wanted: tuple[str, ...]) -> Labelled:
    """Give each class the index that its name has among a model's classes.

    Names agree if they are the same but for case, `_` and `-`, or else in what stands before the
    first comma (ImageNet's synonyms). Classes without images need no counterpart.

    Raises:
        CircuitError: a class of the data is not among the model's, or two are the same one.
    """
    labels, names = labelled
    used = sorted({int(label) for label in labels[labels >= 0]})
    codes = np.full(max(len(names), 1), LEFT_OUT)
    exact = {name: place for place, name in enumerate(wanted)}
    loose, first = _by_form(wanted, _plain), _by_form(wanted, _first_synonym)
    for place in used:
        name = names[place]
        found = exact.get(name, loose.get(_plain(name), first.get(_first_synonym(name))))
        codes[place] = LEFT_OUT if found is None else found
    unknown = [names[place] for place in used if codes[place] == LEFT_OUT]
    _check_match(unknown, [(names[p], wanted[codes[p]]) for p in used if codes[p] >= 0], wanted)
    return np.where(labels < 0, labels, codes[labels.clip(0)]), wanted


def _check_match(unknown: list[str], pairs: list[tuple[str, str]], wanted: tuple[str, ...]) -> None:
    problems = []
    if unknown:
        problems.append(
            f"the data's {_some(unknown)} are not among the model's {_some(wanted)}"
            f"{_nearest(unknown, wanted)}"
        )
    targets = [target for _, target in pairs]
    twice = [f"{name!r} as {target!r}" for name, target in pairs if targets.count(target) > 1]
    if twice:
        problems.append(f"several classes of the data are one of the model's: {', '.join(twice)}")
    if problems:
        raise CircuitError(
            f"the data's classes don't match the model's by name: {'; '.join(problems)}. Rename "
            "them, keep some with classes=[…], or take labels by index: "
            "preprocessing=dataclasses.replace(model.preprocessing, class_names=None)."
        )


def _by_form(names: tuple[str, ...], form: Any) -> dict[str, int]:
    """Places by another form of the names, without the forms that several names share."""
    forms = [form(name) for name in names]
    counts = Counter(forms)
    return {text: place for place, text in enumerate(forms) if counts[text] == 1}


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _first_synonym(name: str) -> str:
    return _plain(name.split(",")[0])


def _nearest(unknown: Sequence[Any], names: Sequence[str]) -> str:
    """` (nearest: …)`, as far as some names are like the unknown ones."""
    near = {
        text: found[0]
        for text in map(str, unknown[:6])
        if (found := difflib.get_close_matches(text, names, n=1, cutoff=0.5))
    }
    pairs = ", ".join(f"{found!r} for {text!r}" for text, found in near.items())
    return f" (nearest: {pairs})" if pairs else ""


def _some(names: Sequence[Any], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
