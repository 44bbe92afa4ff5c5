"""Codes labels, selects and orders classes, and matches them to a model's classes by name.

Names of classes are compared as `class_name` has them.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from circuitvit.checks import is_whole
from circuitvit.errors import CircuitError, in_short, warn
from circuitvit.images.classes.imagenet import (
    ANIMALS,
    described,
    is_wnid,
    knows_all,
    place_in_imagenet,
)
from circuitvit.preprocessing import class_name, natural_key

UNLABELLED, LEFT_OUT = -1, -2
"""Codes of images without a label, and of images whose class was not asked for."""

_TOLD = 6
_LOOKED_AT, _LONG = 2000, 100
"""How many names are compared with an unknown one, and the characters of the longest of them."""

Labelled = tuple[np.ndarray, tuple[str, ...]]
"""The class of each image [image], int64, or one of the codes above; and the classes' names."""

Classes = str | Sequence[str | int]
"""Which classes: `"animals"`, or names and indices in the order that they shall have."""


def plain_labels(values: Sequence[Any], what: str) -> list[Any]:
    """Labels as `coded` takes them: floats that are whole become so, NaN becomes None.

    Raises:
        CircuitError: a float is not whole.
    """
    floats = [value for value in values if isinstance(value, float) and not math.isnan(value)]
    if broken := [value for value in floats if not value.is_integer()]:
        raise CircuitError(
            f"{what} holds {broken[0]}, which is no class; expected whole numbers or text. Convert "
            "the labels, or give another column as the label."
        )
    if not any(isinstance(value, float) for value in values):
        return list(values)
    return [
        value if not isinstance(value, float) else None if math.isnan(value) else int(value)
        for value in values
    ]


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
    values = [class_name(value) if isinstance(value, str) else value for value in values]
    missing = [value is None or (not isinstance(value, str) and value < 0) for value in values]
    pairs = list(zip(values, missing, strict=True))
    if names is None:
        every = {value for value, none in pairs if not none}
        found = sorted(every, key=lambda value: (isinstance(value, str), value))
        codes = {value: code for code, value in enumerate(found)}
        labels = [UNLABELLED if none else codes[value] for value, none in pairs]
        return np.array(labels, dtype=np.int64), tuple(str(value) for value in found)
    names = tuple(map(class_name, names))
    if any(isinstance(value, str) for value in values):
        return _coded_text(values, names)
    codes = [UNLABELLED if none else value for value, none in pairs]
    if codes and (highest := max(codes)) >= len(names):
        raise CircuitError(
            f"labels go up to {highest}, but there are {len(names)} class names. Give a name "
            "for each class, from class 0 on."
        )
    return np.array(codes, dtype=np.int64), names


def as_one(labelled: Labelled, written: Sequence[str]) -> Labelled:
    """The same labels, with classes as one whose names only differ in how accents are written.

    Args:
        labelled: labels and normalised names.
        written: the names as the source writes them.
    """
    labels, names = labelled
    if len(set(names)) == len(names) or len(set(written)) < len(written):
        return labelled
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    codes = np.array([places[name] for name in names], dtype=np.int64)
    return np.where(labels < 0, labels, codes[labels.clip(0)]), tuple(places)


def _coded_text(values: Sequence[Any], names: tuple[str, ...]) -> Labelled:
    codes = {name: code for code, name in enumerate(names)}
    counts = Counter(names)
    if shared := sorted({v for v in values if counts[v] > 1}):
        raise CircuitError(
            f"several classes are called {some(shared)}, so these labels don't say which. Give "
            "labels as indices."
        )
    unknown = sorted({str(v) for v in values if v is not None and v not in codes})
    if unknown:
        raise CircuitError(
            f"the labels {some(unknown)} are no class names; these are {some(names)}. Name each."
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
                f"classes is {in_short(classes)}, expected 'animals' or a list of class names or "
                f"indices, such as [{in_short(classes)}]."
            )
        wnids = [animal.wnid for animal in ANIMALS]
        if not set(wnids) & set(names):
            raise CircuitError(
                "classes is 'animals', which are classes of Tiny-ImageNet under their wnids, such "
                f"as {wnids[0]!r}, but the data have {some(names)}. Name some of these."
            )
        places = _places(wnids, names)
        kept = tuple(animal.name for animal in ANIMALS)
    else:
        places = _places(classes, names)
        kept = tuple(names[place] for place in places)
        there = set(np.unique(labels).tolist())
        if empty := [names[place] for place in places if place not in there]:
            raise CircuitError(f"there are no images of {some(empty)}. Leave these classes out.")
    codes = np.full(len(names), LEFT_OUT)
    codes[places] = np.arange(len(places))
    return np.where(labels < 0, labels, codes[labels.clip(0)]), kept


def _places(classes: Sequence[str | int], names: tuple[str, ...]) -> list[int]:
    called = _by_form(names, class_name)
    found = [_place(asked, called, len(names)) for asked in classes]
    problems = [
        f"{len(same)} classes are called {in_short(asked)}, those at {some(same)}"
        for asked in classes
        if isinstance(asked, str) and len(same := called.get(class_name(asked), ())) > 1
    ]
    if unknown := [asked for asked, place in zip(classes, found, strict=True) if place is None]:
        problems.append(
            f"{some(unknown)} are not there; the data have {some(names)}{nearest(unknown, names)}"
        )
    # Of folders 0, 1, 10, 2, the number 2 may mean the third or the last.
    problems += [
        f"{in_short(asked)} is the index of {names[place]!r}, but another class is called "
        f"{in_short(str(asked))}; give names, as text"
        for asked, place in zip(classes, found, strict=True)
        if not isinstance(asked, str)
        and place is not None
        and str(asked) in called
        and names[place] != str(asked)
    ]
    places = [place for place in found if place is not None]
    if twice := sorted({names[place] for place, count in Counter(places).items() if count > 1}):
        problems.append(f"{some(twice)} are named twice")
    if not len(classes):
        problems.append("none is named")
    if problems:
        raise CircuitError(
            f"these classes can't be kept: {_few(problems)}. Give names or indices below "
            f"{len(names)}, each once."
        )
    return places


def place_of(asked: Any, names: Sequence[str]) -> int | None:
    """The place of a class, by its name or index; a name wins, as a class may be called `3`."""
    called = {class_name(asked): places_called(asked, names)} if isinstance(asked, str) else {}
    return _place(asked, called, len(names))


def _place(asked: Any, called: Mapping[str, Sequence[int]], count: int) -> int | None:
    if isinstance(asked, str):
        if same := called.get(class_name(asked)):
            return same[0]
        # The command line gives indices as text.
        asked = int(asked) if asked.isdecimal() and len(asked) < 20 else None
    return int(asked) if is_whole(asked) and 0 <= asked < count else None


def places_called(asked: Any, names: Sequence[str]) -> list[int]:
    """The places of all classes of this name; ImageNet has two cranes."""
    if not isinstance(asked, str):
        return []
    wanted = class_name(asked)
    return [place for place, name in enumerate(names) if class_name(name) == wanted]


def matched(labelled: Labelled, wanted: tuple[str, ...]) -> Labelled:
    """Give each class the index that its name has among a model's classes.

    Names agree to the letter, or else if they are the same but for case, `_` and `-` in what
    stands before the first comma (ImageNet's synonyms), or if one is the WordNet id of the other.
    Classes without images need no counterpart.

    Raises:
        CircuitError: a class of the data is not among the model's or may be several of them, or two
            are the same one.
    """
    labels, names = labelled
    if names == wanted:
        return labelled  # though several classes may be called the same
    used = sorted({int(label) for label in labels[labels >= 0]})
    codes = np.full(max(len(names), 1), LEFT_OUT)
    known = _places_of([names[place] for place in used], wanted)
    if any(len(places) != 1 for places in known) or len({p for p, *_ in known}) < len(known):
        found = list(zip((names[place] for place in used), known, strict=True))
        raise CircuitError(_problems(found, wanted, count=len(names)))
    for place, (found, *_) in zip(used, known, strict=True):
        codes[place] = found
    return np.where(labels < 0, labels, codes[labels.clip(0)]), wanted


def _places_of(names: Sequence[str], wanted: tuple[str, ...]) -> list[list[int]]:
    """The places among a model's names that each name may mean."""
    exact, looked_up = _by_form(wanted, str), wanted
    if not all(name in exact for name in names):
        looked_up = tuple((is_wnid(name) and described(name)) or name for name in wanted)
    loose, first = _by_form(looked_up, _plain), _by_form(looked_up, _first_synonym)
    synonyms: dict[str, list[int]] = {}  # of what we have looked up, any will do
    for place, text in enumerate(looked_up):
        for synonym in text.split(",") if text != wanted[place] else ():
            synonyms.setdefault(_plain(synonym), []).append(place)

    def meant(name: str) -> list[int]:
        if name in exact:
            return exact[name]
        called = described(name) if is_wnid(name) else name
        place = _at_its_place(name, wanted) if is_wnid(name) else None
        if place is not None or called is None:
            return [] if place is None else [place]
        # All synonyms together say more than the first, but that alone may be another's too.
        whole = exact.get(called) or ("," in called and loose.get(_plain(called)))
        same = whole or first.get(_first_synonym(called)) or synonyms.get(_plain(called))
        if same or called == name:
            return same or []
        return sorted({p for text in called.split(",") for p in first.get(_plain(text), [])})

    return [meant(name) for name in names]


def _at_its_place(wnid: str, wanted: tuple[str, ...]) -> int | None:
    """The place of a WordNet id in a model of ImageNet-1k, whose order is that of the ids.

    So the two cranes are told apart, however a model calls them.
    """
    place, text = place_in_imagenet(wnid), described(wnid)
    if len(wanted) != 1000 or place is None or text is None:
        return None
    # What two classes are called is told apart behind the name: `crane (517)`, `crane bird`.
    agrees = f"{_first_synonym(wanted[place])} ".startswith(f"{_first_synonym(text)} ")
    return place if agrees else None


def _problems(
    found: Sequence[tuple[str, Sequence[int]]], wanted: tuple[str, ...], *, count: int
) -> str:
    """A problem of a match of class names, and its remedy."""
    problems, advice = list[str](), ["Rename them"]
    unknown = [name for name, places in found if not places]
    if unknown:
        problems.append(
            f"the data's {some(unknown)} are not among the model's {some(wanted)}"
            f"{nearest(unknown, wanted)}"
        )
    unclear = [(name, places) for name, places in found if len(places) > 1]
    for name, places in unclear[:_TOLD]:
        meant = " or ".join(f"{wanted[place]!r} (class {place})" for place in places)
        problems.append(f"the data's {name!r} may be the model's {meant}")
    if len(unclear) > _TOLD:
        problems.append(f"and {len(unclear) - _TOLD} more such names")
    clear = [(name, places[0]) for name, places in found if len(places) == 1]
    counts = Counter(place for _, place in clear)
    twice = [f"{name!r} as {wanted[place]!r}" for name, place in clear if counts[place] > 1]
    if twice:
        problems.append(f"several classes of the data are one of the model's: {_few(twice, ', ')}")
    if clear:
        advice.append("keep those that match with classes=[…]")
    if any(map(is_wnid, unknown)) and not knows_all():
        advice.append("install circuitvit[timm], which knows the names of ImageNet's WordNet ids")
    if count == len(wanted):
        advice.append(
            "take labels by index: preprocessing=dataclasses.replace(model.preprocessing, "
            "class_names=None)"
        )
    *others, last = advice
    said = f"{', '.join(others)}, or {last}" if others else f"{last} as the model's are called"
    return (
        f"the data's classes don't match the model's by name: {'; '.join(problems)}. For a model "
        f"of the data's classes, load the data without model= and give it a head for them: "
        f"cv.with_new_head(model, {count}). {said}."
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


def nearest(unknown: Sequence[Any], names: Sequence[str]) -> str:
    """` (nearest: …)`, as far as some names are like the unknown ones."""
    looked_at = [name for name in names[:_LOOKED_AT] if len(name) <= _LONG]
    near = {
        text: found[0]
        for text in map(str, unknown[:6])
        if len(text) <= _LONG
        and (found := difflib.get_close_matches(text, looked_at, n=1, cutoff=0.5))
    }
    pairs = ", ".join(f"{found!r} for {text!r}" for text, found in near.items())
    return f" (nearest: {pairs})" if pairs else ""


def some(names: Sequence[Any], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(in_short, names[:most])) + more


def _few(texts: Sequence[str], between: str = "; ") -> str:
    rest = len(texts) - _TOLD
    return between.join(texts[:_TOLD]) + (f"{between}and {rest} more" if rest > 0 else "")


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
    """The problems of a requested class order."""
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
