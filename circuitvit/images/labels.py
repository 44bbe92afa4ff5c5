"""Labels: coding them, keeping some classes, and matching them to a model's classes by name."""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from circuitvit.errors import CircuitError
from circuitvit.images.animals import ANIMALS
from circuitvit.images.tensors import is_whole

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
    counts = Counter(names)
    if shared := sorted({v for v in values if counts[v] > 1}):
        raise CircuitError(
            f"several classes are called {_some(shared)}, so these labels don't say which. Give "
            "labels as indices."
        )
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
    found = [place_of(asked, names) for asked in classes]
    problems = [
        f"{len(same)} classes are called {asked!r}, those at {_some(same)}"
        for asked in classes
        if len(same := places_called(asked, names)) > 1
    ]
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


def place_of(asked: Any, names: Sequence[str]) -> int | None:
    """The place of a class, by its name or index; a name wins, as a class may be called `3`."""
    if same := places_called(asked, names):
        return same[0]
    if isinstance(asked, str):  # the command line gives indices as text
        asked = int(asked) if asked.isdecimal() else None
    return int(asked) if is_whole(asked) and 0 <= asked < len(names) else None


def places_called(asked: Any, names: Sequence[str]) -> list[int]:
    """The places of all classes of this name; ImageNet has two cranes."""
    return [place for place, name in enumerate(names) if isinstance(asked, str) and asked == name]


def matched(labelled: Labelled, wanted: tuple[str, ...]) -> Labelled:
    """Give each class the index that its name has among a model's classes.

    Names agree to the letter, or else if they are the same but for case, `_` and `-` in what
    stands before the first comma (ImageNet's synonyms). Classes without images need no counterpart.

    Raises:
        CircuitError: a class of the data is not among the model's or may be several of them, or two
            are the same one.
    """
    labels, names = labelled
    if names == wanted:
        return labelled  # though several classes may be called the same
    used = sorted({int(label) for label in labels[labels >= 0]})
    codes = np.full(max(len(names), 1), LEFT_OUT)
    exact, loose, first = (_by_form(wanted, form) for form in (str, _plain, _first_synonym))
    known = dict[int, list[int]]()
    for place in used:
        name = names[place]
        # All synonyms together say more than the first, but that alone may be another's too.
        same = exact.get(name) or ("," in name and loose.get(_plain(name)))
        known[place] = same or first.get(_first_synonym(name), [])
    _check_match([(names[place], found) for place, found in known.items()], wanted)
    for place, found in known.items():
        codes[place] = found[0]
    return np.where(labels < 0, labels, codes[labels.clip(0)]), wanted


def _check_match(found: Sequence[tuple[str, list[int]]], wanted: tuple[str, ...]) -> None:
    problems = []
    if unknown := [name for name, places in found if not places]:
        problems.append(
            f"the data's {_some(unknown)} are not among the model's {_some(wanted)}"
            f"{_nearest(unknown, wanted)}"
        )
    unclear = [(name, places) for name, places in found if len(places) > 1]
    for name, places in unclear[:6]:
        meant = " or ".join(f"{wanted[place]!r} (class {place})" for place in places)
        problems.append(f"the data's {name!r} may be the model's {meant}")
    if len(unclear) > 6:
        problems.append(f"and {len(unclear) - 6} more such names")
    clear = [(name, places[0]) for name, places in found if len(places) == 1]
    counts = Counter(place for _, place in clear)
    twice = [f"{name!r} as {wanted[place]!r}" for name, place in clear if counts[place] > 1]
    if twice:
        problems.append(f"several classes of the data are one of the model's: {', '.join(twice)}")
    if problems:
        raise CircuitError(
            f"the data's classes don't match the model's by name: {'; '.join(problems)}. Rename "
            "them, keep some with classes=[…], or take labels by index: "
            "preprocessing=dataclasses.replace(model.preprocessing, class_names=None)."
        )


def _by_form(names: Sequence[str], form: Callable[[str], str]) -> dict[str, list[int]]:
    """The places of all names of one form."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(form(name), []).append(place)
    return found


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
