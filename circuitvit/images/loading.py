"""From a source of images to training, validation and test images."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, no_type_check

import numpy as np
import torch

from circuitvit.checks import is_number, is_whole
from circuitvit.errors import CircuitError, in_short, warn
from circuitvit.images.classes.labels import Classes, ClassOrder, order_problems, some
from circuitvit.images.decoding.pixels import Decoded, Look, decode, remembered
from circuitvit.images.decoding.view_settings import Viewer, asked_for
from circuitvit.images.image_set import ImageSet, Splits
from circuitvit.images.image_table import Table
from circuitvit.images.sources.arrays import digits_table, npz_table
from circuitvit.images.sources.class_choice import (
    Parts,
    Wish,
    choice_problems,
    warn_of_lost_classes,
    with_classes,
)
from circuitvit.images.sources.source_kinds import (
    Draw,
    given_table,
    is_tiny_imagenet,
    source_table,
    tiny_imagenet_table,
)
from circuitvit.images.sources.split_expressions import PARTS, Split, own_parts
from circuitvit.images.tensor_checks import balanced, stratified
from circuitvit.preprocessing import Preprocessing

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Place = str | os.PathLike[str]
_TOLD = 3


@no_type_check  # it checks its own input, with words for people
def load_splits(
    source: "Place | Mapping[str, Place] | Dataset | DatasetDict",
    *,
    model: Viewer | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    pixel_range: tuple[float, float] | None = None,
    classes: Classes | None = None,
    class_order: ClassOrder | None = None,
    split: Split | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    strict: bool = False,
    cache: Place | None = None,
    workers: int = 0,
    streaming: bool = False,
) -> Splits:
    """Load labelled images as three disjoint sets, as a model looks at them.

    A source's own validation and test images are kept as such (with validation images only, these
    become the test images); what is missing is carved from the training images, each class in
    proportion. Pictures are resized and cropped as torchvision and timm do at evaluation, turned as
    their camera was held, and normalised.

    Args:
        source: `"digits"` (scikit-learn's 8×8 handwritten digits, embedded); or a folder of images,
            one folder a class, in it or in its `train`, `test`, … (links are followed; whatever
            Pillow can open is read, whether its name says so or not); the folder
            `tiny-imagenet-200`; a parquet file, a folder or pattern of parquet files whose names
            say `train`, `test` or `valid`, or `{"train": "a.parquet", "test": "b.parquet"}`, where
            a split may also be a folder or a pattern of such; a `.npz` file; the id of a data set
            on the Hugging Face hub; or what `datasets` has loaded. `./digits` is a path.
        model: a `ViT` or `CircuitViT`, whose size, channels, preprocessing and classes are used. If
            it knows its class names, the data's classes are matched to them by name, whatever their
            order; else they must be as many as the model's.
        preprocessing: used instead of the model's; by default bicubic, mean and deviation 0.5. Its
            class names count as the model's.
        image_size: side in pixels; without it and a model, images must be squares of one size.
        channels: 1 (grey) or 3 (RGB); by default the model's, else 3, or what arrays have.
        pixel_range: the values of black and of white, such as (0, 65535), in pictures of 16 bits or
            of floats, which can't be read without it.
        classes: names or indices of the classes to keep, which become 0, 1, … in that order; or
            `"animals"`, Tiny-ImageNet's 58 with names people know (see `images.ANIMALS`).
        class_order: puts the classes in the order of their names, `"alphabetical"` (`10` before
            `2`) or `"natural"` (after it). By default it is what the source declares, for folders
            and text alphabetical; where the natural order is another, a warning says so.
        split: an expression of `datasets`, `"train[:2%]"`, of which all parts are carved, or a
            mapping from `train` and, if wanted, `validation` and `test` to such. A slice is of the
            stored order: the first images of a folder are of one class.
        validation: share of the training images that becomes the validation images, where there
            are no others.
        test: likewise for the test images.
        seed: draws the parts and the images within the limit.
        limit: at most so many images in each part, drawn evenly over the classes.
        strict: raise at pictures that can't be read, rather than leave them out with a warning;
            files that are no pictures are left out in either case.
        cache: a folder for decoded pixels; what is there is not decoded again.
        workers: threads that decode; the images are the same with any number.
        streaming: read only `limit` images of each of the source's splits, drawn from the first
            8 · `limit` as they come (hub and parquet), and carve the parts of these.

    Returns:
        The three parts; the same arguments give the same images. `skipped` names the pictures that
        could not be read.

    Raises:
        CircuitError: there is nothing at the source, it can't be read, its images have no labels
            or several sizes, its classes are not the model's, some are not among the training
            images, or it has too few images.
    """
    given = locals()
    asked = asked_for(model, preprocessing, image_size, channels, pixel_range)
    if problems := [
        *asked.problems, *_problems(given),
        *choice_problems(given, asked.preprocessing.class_names),
    ]:  # fmt: skip
        raise CircuitError("images can't be loaded so: " + "; ".join(problems) + ".")
    limit, seed, workers = None if limit is None else int(limit), int(seed), int(workers)
    validation, test = float(validation), float(test)
    name = _name_of(source)
    wish = Wish(
        name, classes, class_order, asked.preprocessing.class_names, asked.classes, split, streaming
    )
    table = _table(source, Draw(limit, seed) if streaming else None)
    table, own = with_classes(table, own_parts(table.sizes, split, name), wish)
    parts = _parts(table, own, validation, test, seed, name)
    warn_of_lost_classes(table, parts, wish)
    parts = {part: _within(table, places, limit, seed) for part, places in parts.items()}
    look = asked.look(table)
    found = {}
    for part in PARTS:
        found[part] = _decoded(table, parts[part], look, cache, workers, f"{part} images")
    _tell(found, parts, table, strict)
    sets, seen = {}, replace(asked.preprocessing, class_names=table.class_names)
    for part, decoded in found.items():
        labels = torch.from_numpy(table.labels[parts[part][decoded.kept]])
        sets[part] = ImageSet(asked.normalised(decoded.pixels), labels, table.class_names, seen)
    return Splits(**sets, skipped=_skipped(found, table))


def _name_of(source: Any) -> str:
    """The name of a source in messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    places = list(source.values()) if isinstance(source, Mapping) else []
    if places and all(isinstance(place, str | os.PathLike) for place in places):
        return ", ".join(map(os.fspath, places))
    return type(source).__name__


def _problems(given: Mapping[str, Any]) -> Iterator[str]:
    """The problems of the settings of `load_splits`, one sentence each."""
    yield from _kind_problems(given)
    validation, test = shares = given["validation"], given["test"]
    if not all(is_number(share) and 0 < share < 1 for share in shares) or validation + test >= 1:
        yield (
            f"validation is {in_short(validation)} and test {in_short(test)}, expected shares > 0 "
            "with a sum < 1"
        )
    for name, least, what in (
        ("limit", 1, "a whole number of images, at least 1"),
        ("seed", 0, "a whole number ≥ 0"),
        ("workers", 0, "a whole number of threads ≥ 0"),
    ):
        value = given[name]
        if not (is_whole(value) and value >= least) and not (name == "limit" and value is None):
            yield f"{name} is {in_short(value)}, expected {what}"
    if given["streaming"] and given["limit"] is None:
        yield "streaming without a limit would read everything; give a limit"
    yield from order_problems(given["class_order"])
    yield from _split_problems(given["split"], given["streaming"])


def _kind_problems(given: Mapping[str, Any]) -> Iterator[str]:
    source, classes, cache = (given[name] for name in ("source", "classes", "cache"))
    if isinstance(source, str) and not source.strip():
        yield "source is empty; give a path ('.' is this folder), a hub id or 'digits'"
    places = {"source": source, "cache": cache}
    if isinstance(source, Mapping):
        places |= {f"source[{split!r}]": place for split, place in source.items()}
    for name, place in places.items():
        if isinstance(place, str | os.PathLike):
            yield from _path_problems(name, place)
    if not isinstance(classes, str | Sequence | np.ndarray | None):
        yield f"classes is {in_short(classes)}, expected 'animals' or a list of names or indices"
    if not isinstance(cache, str | os.PathLike | None):
        yield f"cache is {in_short(cache)}, expected the path of a folder"


def _path_problems(name: str, place: Place) -> Iterator[str]:
    """The reason why a text can't be a path on any file system."""
    try:
        Path(place).expanduser().stat()
    except ValueError:
        yield f"{name} is {in_short(os.fspath(place))}, which holds characters that no path has"
    except RuntimeError:
        yield f"{name} is {in_short(os.fspath(place))}, and that home folder is not known"
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:
            yield f"{name} is {in_short(os.fspath(place))}, which is longer than a path may be"


def _split_problems(split: Any, streaming: bool) -> Iterator[str]:
    whole = {"train": split} if isinstance(split, str) else {} if split is None else split
    if not isinstance(whole, Mapping) or not all(isinstance(e, str) for e in whole.values()):
        yield (
            f"split is {in_short(split)}, expected an expression such as 'train[:2%]', or a "
            "mapping from 'train' and other parts to such"
        )
    elif streaming and any("[" in expression for expression in whole.values()):
        yield "streaming reads whole splits, so split can have no [slices]"


def _table(source: Any, draw: Draw | None) -> Table:
    if not isinstance(source, str | os.PathLike):
        return given_table(source, draw)
    path = Path(source).expanduser()
    is_npz = path.suffix.lower() == ".npz"
    arrays = source == "digits" or is_npz
    if draw is not None and (arrays or is_tiny_imagenet(path)):
        raise CircuitError(
            f"{source} can't be streamed, only data sets of the hub and parquet files can. Leave "
            "streaming out: only the images within the limit are decoded anyway."
        )
    if source == "digits":
        return digits_table()
    if is_npz and path.is_file():
        return npz_table(path)
    if is_tiny_imagenet(path):
        return tiny_imagenet_table(path)
    return source_table(os.fspath(source), draw)


def _parts(
    table: Table, own: Parts, validation: float, test: float, seed: int, source: str
) -> Parts:
    """The positions of all three parts: those that are missing are carved from the first."""
    train, labels = own["train"], table.labels[own["train"]]
    shares = {"test": test, "validation": validation}
    carved = {name: round(share * len(train)) for name, share in shares.items() if name not in own}
    *taken, kept = stratified(labels, tuple(carved.values()), seed)
    parts = own | {name: train[places] for name, places in zip(carved, taken, strict=True)}
    parts["train"] = train[kept]
    small = [name for name in PARTS if not len(parts[name])]
    if small:
        count = {name: len(places) for name, places in own.items()}
        raise CircuitError(
            f"{source} has too few images, {count}: none would be left for {', '.join(small)}. "
            "Give more images or larger shares."
        )
    return parts


def _within(table: Table, places: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= len(places):
        return places
    return places[np.sort(balanced(table.labels[places], limit, seed))]


def _decoded(
    table: Table, places: np.ndarray, look: Look, cache: Place | None, workers: int, what: str
) -> Decoded:
    def work() -> Decoded:
        return decode(table, places, look, workers=workers, what=what)

    return work() if cache is None else remembered(cache, table, places, look, work)


def _skipped(found: dict[str, Decoded], table: Table) -> tuple[str, ...]:
    return (*table.unreadable, *(line for decoded in found.values() for line in decoded.skipped))


def _tell(found: dict[str, Decoded], parts: Parts, table: Table, strict: bool) -> None:
    """Say once what could not be read, and which classes have no images therefore."""
    skipped = _skipped(found, table)
    if not skipped:
        return
    total = len(skipped) + sum(len(decoded.kept) for decoded in found.values())
    more = "; …" if len(skipped) > _TOLD else ""
    said = f"{len(skipped)} of {total} images can't be read: {'; '.join(skipped[:_TOLD])}{more}."
    empty = [part for part, decoded in found.items() if not len(decoded.kept)]
    if strict or empty:
        none = f" None are left for {', '.join(empty)}." if empty else ""
        remedy = " Replace them, or leave them out" + (" with strict=False" if strict else "")
        raise CircuitError(said + none + remedy + ".")
    wanted = np.unique(np.concatenate([table.labels[parts[part]] for part in found]))
    left = [table.labels[parts[part][decoded.kept]] for part, decoded in found.items()]
    lost = [table.class_names[label] for label in np.setdiff1d(wanted, np.concatenate(left))]
    gone = f" No image is left of the classes {some(lost)}." if lost else ""
    warn(f"{said} They are left out; Splits.skipped names all.{gone}")
