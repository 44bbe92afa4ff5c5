"""Chooses the classes and their order, from the source, the arguments and the model.

A source that lists its classes has these. Else they are those of its training images: a class that
only other images have can't be learned, and is mostly a misspelt folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from circuitvit.errors import CircuitError, in_short, warn
from circuitvit.images.classes.labels import (
    LEFT_OUT,
    UNLABELLED,
    Classes,
    ClassOrder,
    Labelled,
    matched,
    nearest,
    ordered,
    selected,
    some,
    warn_of_order,
)
from circuitvit.images.image_table import Table
from circuitvit.images.sources.split_expressions import Split

Parts = dict[str, np.ndarray]
"""The positions of each part in a table."""


@dataclass(frozen=True)
class Wish:
    """The requested classes and their order.

    Attributes:
        source: what messages call the data.
        classes: those to keep, in their order.
        order: of their names.
        known: a model's class names, in its order.
        count: how many classes a model has.
        split: the slices that were asked for.
        is_sample: whether only some images were read, so that a class may be missing by chance.
    """

    source: str
    classes: Classes | None
    order: ClassOrder | None
    known: tuple[str, ...] | None
    count: int | None
    split: Split | None
    is_sample: bool

    @property
    def is_open(self) -> bool:
        """Whether neither the caller nor a model says which classes there are."""
        return self.classes is None and self.known is None


def with_classes(table: Table, own: Parts, wish: Wish) -> tuple[Table, Parts]:
    """The table with the requested classes, in the model's order.

    Raises:
        CircuitError: images have no label; classes are unknown, not the model's, or not among the
            training images.
    """
    _check_labels(table, own, wish.source)
    used = np.isin(np.arange(len(table.labels)), np.concatenate([*own.values()]))
    table = _of_used_splits(table, used)
    if wish.split is not None and wish.classes is None:
        _warn_of_slices(table, own["train"], wish.split)
    # Images outside the parts have no say in what follows.
    table = replace(table, labels=np.where(used, table.labels, LEFT_OUT))
    if wish.is_open and wish.split is None and not (wish.is_sample or table.is_declared):
        _check_training_classes(table, own, wish.source)
    labels, names = _labelled_as_asked(table, wish)
    if wish.count is not None and len(names) != wish.count:
        remedy = (
            "Only the rows that were read count, and the stream doesn't declare its classes: give "
            "a larger limit=, or leave streaming= out."
            if wish.is_sample and not table.is_declared and len(names) < wish.count
            else "Give the data that it was trained on, or keep the right classes of them with "
            "classes=[…]."
        )
        raise CircuitError(
            f"this model has {wish.count} classes, the data {in_short(wish.source)} have "
            f"{len(names)}. {remedy}"
        )
    if wish.is_open and wish.order is None:
        warn_of_order(
            names,
            is_declared=table.is_declared,
            remedy="Say class_order='natural' or class_order='alphabetical'.",
        )
    own = {part: places[labels[places] != LEFT_OUT] for part, places in own.items()}
    return replace(table, labels=labels, class_names=names), own


def _labelled_as_asked(table: Table, wish: Wish) -> Labelled:
    labelled = table.labels, table.class_names
    if wish.order is not None:
        labelled = ordered(labelled, wish.order)
    if wish.classes is not None:
        labelled = selected(labelled, wish.classes)
    return labelled if wish.known is None else matched(labelled, wish.known)


def warn_of_lost_classes(table: Table, parts: Parts, wish: Wish) -> None:
    """Name the classes that have images, but none to train on; and say where there is but one."""
    there = np.unique(np.concatenate([table.labels[places] for places in parts.values()]))
    lost = _names(table, np.setdiff1d(there, np.unique(table.labels[parts["train"]])))
    if lost and wish.known is None and (wish.split is None or wish.classes is not None):
        warn(
            f"there are no training images of {len(lost)} of {len(there)} classes "
            f"({_listed(lost)}), but validation or test images, so no model can learn them. Give "
            "more images of them, or keep the other classes with classes=[…]."
        )
    if len(table.class_names) == 1 and wish.classes is None and not table.is_declared:
        warn(
            f"all images of {wish.source} are of one class, {table.class_names[0]!r}. Make one "
            "folder a class, if there are several."
        )


def _warn_of_slices(table: Table, train: np.ndarray, split: Split) -> None:
    """A slice of images that are stored class by class holds some classes only."""
    every = np.unique(table.labels[table.labels >= 0])
    if lost := _names(table, np.setdiff1d(every, table.labels[train])):
        warn(
            f"split={in_short(split)} leaves no training images of {len(lost)} of {len(every)} "
            f"classes ({_listed(lost)}): a slice is of the stored order. limit=... draws evenly "
            "over the classes."
        )


def _check_labels(table: Table, own: Parts, source: str) -> None:
    missing = [part for part, places in own.items() if (table.labels[places] == UNLABELLED).any()]
    if missing:
        count = sum(int((table.labels[own[part]] == UNLABELLED).sum()) for part in missing)
        raise CircuitError(
            f"{count} images have no label (None, or a number below 0), in {', '.join(missing)} of "
            f"{source}. Leave them out, label them, or say with split which images to take."
        )


def _of_used_splits(table: Table, used: np.ndarray) -> Table:
    """The table without classes that the source doesn't list, of splits that no part is of."""
    if table.is_declared:
        return table
    start, labels = 0, table.labels.copy()
    for count in table.sizes.values():
        split = slice(start, start + count)
        if not used[split].any():
            labels[split] = LEFT_OUT
        start += count
    kept = np.unique(labels[labels >= 0])
    codes = np.full(max(len(table.class_names), 1), LEFT_OUT)
    codes[kept] = np.arange(len(kept))
    labels = np.where(labels < 0, labels, codes[labels.clip(0)])
    return replace(table, labels=labels, class_names=tuple(_names(table, kept)))


def _check_training_classes(table: Table, own: Parts, source: str) -> None:
    trained = np.unique(table.labels[own["train"]])
    names = _names(table, trained)
    problems, start = [], 0
    for split, count in table.sizes.items():  # as the source calls them, not as parts
        labels = table.labels[start : start + count]
        unknown = _names(table, np.setdiff1d(labels, trained))
        if unknown:
            found = int((~np.isin(labels, trained) & (labels >= 0)).sum())
            problems.append(
                f"{found} {split} images are of {some(unknown)}{nearest(unknown, names)}"
            )
        start += count
    if problems:
        raise CircuitError(
            f"{source} has classes that no training image has: {'; '.join(problems)}; the training "
            f"images have {some(names)}. Call classes the same everywhere, add training images, or "
            f"leave the others out: classes={names if len(names) <= 10 else '[…]'}."
        )


def _names(table: Table, labels: np.ndarray) -> list[str]:
    return [table.class_names[label] for label in labels if label >= 0]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def choice_problems(given: Mapping[str, object], known: tuple[str, ...] | None) -> list[str]:
    """What says the order of the classes beside `class_order`, which is one too many."""
    if given["class_order"] is None:
        return []
    if given["classes"] is not None:
        return ["classes and class_order both say the order of the classes; leave one out"]
    if known is not None:
        return ["the model's class names say the order of the classes; leave class_order out"]
    return []
