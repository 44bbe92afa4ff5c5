"""Finds the images of a source: a folder of pictures, parquet files, or a data set of the hub.

Folders are read by ourselves, everything else through `datasets`, which is imported only when
needed.
"""

import glob
import heapq
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitvit.errors import CircuitError, in_short, reason_of, warn
from circuitvit.files import unwritable_cache
from circuitvit.images.image_table import Table, column_of, dataset_table, files_table
from circuitvit.images.sources.folders import is_metadata, layout_of, walked
from circuitvit.images.sources.split_expressions import check_places, split_called, split_of

if TYPE_CHECKING:
    from datasets import Dataset


_HASH = re.compile(r"[0-9a-f]{16}")
_TOLD = 6


def check_one_data_set(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder whose parquet files are of several data sets, and say how to choose one.

    A data set is named by what a path says before the split, or after it, without numbers and
    hashes. Files of several names are several data sets if their columns or classes differ, or if
    two of them have more than one split each; else they are parts of one.

    Raises:
        CircuitError: as it says.
    """
    sets: dict[str, list[Path]] = {}
    for file in files:
        sets.setdefault(_name_of(file.relative_to(folder)), []).append(file)
    if len(sets) < 2 or not (_differ(sets) or _have_splits(sets)):
        return
    names = sorted(sets)
    first = sets[names[0]]
    told = ", ".join(in_short(name) for name in names[:_TOLD])
    rest = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    raise CircuitError(
        f"{folder} holds {len(sets)} data sets in parquet: {told}{rest}. Choose one: give "
        f"{_chosen(folder, first, files)}."
    )


def _name_of(path: Path) -> str:
    """The data set that a path names: what comes before the split, else what comes after it."""
    words = re.split(r"[-_./\\ ]+", str(path.with_suffix("")))
    place = next((place for place, word in enumerate(words) if split_of(word)), len(words))
    before, after = (
        "_".join(w for w in part if not (w.isdigit() or w == "of" or _HASH.fullmatch(w)))
        for part in (words[:place], words[place + 1 :])
    )
    return before or after or "data"


def _differ(sets: dict[str, list[Path]]) -> bool:
    """Whether the columns or the classes of some differ; what can't be read says nothing."""
    found = [_signature(files[0]) for files in sets.values()]
    known = [signature for signature in found if signature is not None]
    return any(signature != known[0] for signature in known)


def _signature(file: Path) -> Any:
    """The columns of a parquet file with their types, and what it says of classes."""
    from pyarrow import ArrowException, parquet

    try:
        schema = parquet.read_schema(file)
    except (ArrowException, OSError):
        return None  # reading it will tell why
    columns = sorted((field.name, str(field.type)) for field in schema)
    return columns, (schema.metadata or {}).get(b"huggingface")


def _have_splits(sets: dict[str, list[Path]]) -> bool:
    """Whether two of them have more than one split each."""
    splits = [{split_of(str(file.with_suffix(""))) for file in files} for files in sets.values()]
    return sum(len(own) > 1 for own in splits) > 1


def _chosen(folder: Path, own: Sequence[Path], files: Sequence[Path]) -> str:
    """What to give for the files of one data set alone: a folder, a pattern, or each by name."""
    home = Path(os.path.commonpath([file.parent for file in own]))
    if home != folder and sum(file.is_relative_to(home) for file in files) == len(own):
        return f"the folder {home}"
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*map(str, own), strict=False))
    shared = re.sub(r"[^-_./ ]*$", "", "".join(letters[0] for letters in same))
    pattern = f"{glob.escape(shared)}*.parquet"
    if len(own) > 1 and sorted(glob.glob(pattern)) == sorted(map(str, own)):
        return f"the pattern {pattern!r}"
    if len(own) == 1:
        return f"the file {own[0]}"
    named = {split_of(str(file.with_suffix(""))) or "train": str(file) for file in own}
    return f"its files by split, such as {named!r}"


_BUFFER = 8
_SMALL, _MOST_FOLD = 64 * 2**20, 200
"""A parquet file of more bytes unpacks to at most so many times as many."""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Draw:
    """How to read the first images of each split as they stream in.

    Attributes:
        count: images of each split.
        seed: of the draw, from the first eight times as many rows.
    """

    count: int
    seed: int


def source_table(source: str, draw: Draw | None = None) -> Table:
    """The splits of a source, in its own order and with its own names.

    Args:
        source: a folder of images, one folder a class, with or without `train`, `test`, … above;
            a parquet file, a folder of them, or a pattern such as `data/cifar10_*.parquet`, whose
            names say the split; or the id of a data set on the Hugging Face hub.
        draw: reads no more than it must for these; by default everything is read.

    Raises:
        CircuitError: there is nothing there, it can't be read, or can't be streamed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, draw)
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    files = [file for file in found if file.is_file()]  # a pipe may never end
    if files:
        strangers = [file.name for file in files if not _is_parquet(file)]
        if strangers:
            raise CircuitError(
                f"{source} is not a parquet file ({strangers[0]}). Give a parquet or .npz file, a "
                "folder of images or of parquet files, the id of a data set on the hub, or "
                "'digits'."
            )
        return _table(source, _from_parquet(source, _by_split(files, path.parent), draw))
    if not _HUB_ID.fullmatch(source) or _is_parquet(path):
        raise CircuitError(
            f"there is nothing at {source}. Check the path; it may be a folder of images, a "
            "parquet file or a folder of them, or a .npz file. 'digits' needs no files."
        )
    return _table(source, _from_hub(source, draw))


def given_table(source: Any, draw: Draw | None = None) -> Table:
    """The splits of what `datasets` has loaded already, or of parquet files named one by one.

    What is stored is read, whatever its format or transform makes of it.

    Args:
        source: a Dataset; a DatasetDict of several; or a mapping from each of `train`, `validation`
            and `test`, or some of these, to its parquet file, to a folder of them, or to a pattern.
        draw: as of `source_table`.

    Raises:
        CircuitError: it is neither, a split is unknown or there twice, or it comes in a stream of
            which no count is asked for.
    """
    splits = source if isinstance(source, Mapping) else {"train": source}
    if any(isinstance(place, str | os.PathLike) for place in splits.values()):
        check_places(splits)
        files = {split_called(key) or "": _parquet_at(at, key) for key, at in splits.items()}
        told = ", ".join(str(place) for place in splits.values())
        return _table(told, _from_parquet(told, files, draw))
    strangers = [split for split in splits.values() if not hasattr(split, "select_columns")]
    if strangers or not splits:
        what = type(strangers[0] if strangers else source).__name__
        raise CircuitError(
            f"source is a {what}, expected a path, a hub id, 'digits', a mapping such as "
            "{'train': 'a.parquet', 'test': 'b.parquet'}, or a Dataset or DatasetDict of "
            "`datasets`. For arrays there is ImageSet.from_arrays."
        )
    if draw is None and not all(hasattr(split, "__len__") for split in splits.values()):
        raise CircuitError("the data set is a stream. Give streaming=True and a limit.")
    # Another object: the caller's keeps its format.
    plain = {name: split.with_format(None) for name, split in splits.items()}
    return dataset_table(_drawn(plain, draw))


def _parquet_at(place: str | os.PathLike[str], split: str) -> list[Path]:
    """The parquet files of one split: a file, those in a folder, or those of a pattern.

    Raises:
        CircuitError: there are none, or something else is there.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        found = [file for file in walked(path).files if _is_parquet(file) and not is_metadata(file)]
    else:
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path)))]
    files = [file for file in found if file.is_file() and _is_parquet(file)]
    if not files or (len(files) < len(found) and not path.is_dir()):
        what = "is no parquet file" if found else "is nothing there"
        raise CircuitError(
            f"the source of {split!r} is {os.fspath(place)}, and there {what}. Give a parquet "
            "file, a folder of them or a pattern for each split; a folder of pictures by itself, "
            "not in a mapping."
        )
    return files


def _table(source: str, splits: dict[str, "Dataset"]) -> Table:
    with _reading(source):
        return dataset_table(splits)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _from_folder(folder: Path, draw: Draw | None) -> Table:
    inside = walked(folder)
    parquet = [
        path
        for path in inside.files
        if _is_parquet(path) and path.is_file() and not is_metadata(path)
    ]
    if parquet:
        if pictures := inside.pictures:
            warn(
                f"{folder} holds {len(parquet)} parquet files and {len(pictures)} picture files "
                f"({pictures[0].relative_to(folder)}, …); the pictures are left out. Give the "
                "folder of either."
            )
        check_one_data_set(folder, parquet)
        return _table(str(folder), _from_parquet(str(folder), _by_split(parquet, folder), draw))
    layout = layout_of(folder, inside)
    if draw is not None:
        raise CircuitError(
            f"{folder} is a folder of images, which can't be streamed. Leave streaming out: only "
            "the images within the limit are decoded anyway."
        )
    if layout.is_described:
        described = _load("imagefolder", str(folder), layout.splits)
        with _reading(str(folder)):
            _warn_of_undescribed(folder, layout.splits, described)
        table = _table(str(folder), described)
    else:
        table = files_table({
            split: [(path.absolute(), path.parent.name) for path in paths]
            for split, paths in layout.splits.items()
        })  # fmt: skip
    return replace(table, unreadable=layout.unreadable)


def _warn_of_undescribed(
    folder: Path, files: dict[str, list[Path]], described: dict[str, "Dataset"]
) -> None:
    """Name the pictures that a metadata file doesn't speak of; `datasets` leaves them out.

    Raises:
        CircuitError: it speaks of pictures outside the folder.
    """
    import datasets

    named, root, outside = set[str](), os.path.abspath(folder), list[str]()
    for split in described.values():
        column = column_of(split.features, "image")
        rows = split.cast_column(column, datasets.Image(decode=False))[column]
        paths = [str(row["path"]) for row in rows if row and row["path"]]
        outside += [path for path in paths if not Path(os.path.abspath(path)).is_relative_to(root)]
        named |= {os.path.realpath(path) for path in paths}
    if outside:
        raise CircuitError(
            f"the metadata of {folder} name {len(outside)} pictures outside it "
            f"({in_short(outside[0])}, …). Name pictures below it only."
        )
    every = [path for paths in files.values() for path in paths if not is_metadata(path)]
    if lost := [path for path in every if os.path.realpath(path) not in named]:
        warn(
            f"the metadata of {folder} don't name {len(lost)} of its {len(every)} pictures "
            f"({lost[0].relative_to(folder)}, …), so they are left out."
        )


def _by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """Files by the split that their names say, `train` where they say none."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        splits.setdefault(split_of(str(name.with_suffix(""))) or "train", []).append(file)
    return splits


def _from_parquet(
    source: str, files: dict[str, list[Path]], draw: Draw | None
) -> dict[str, "Dataset"]:
    """Parquet files, read by `datasets`; by pyarrow where `datasets` would misread a path."""
    for path in (path for paths in files.values() for path in paths):
        _check_claim(path)
    if not any(_is_odd(path) for paths in files.values() for path in paths):
        return _load("parquet", source, files, draw)
    import datasets
    from datasets.table import InMemoryTable
    from pyarrow import ArrowException, parquet

    with _reading(source):
        try:
            found = {
                split: datasets.concatenate_datasets([
                    datasets.Dataset(InMemoryTable(parquet.read_table(path)))
                    for path in paths
                ])
                for split, paths in files.items()
            }  # fmt: skip
        except ArrowException as cause:
            raise OSError(str(cause)) from cause
        return _drawn(found, draw)


def _check_claim(path: Path) -> None:
    """Refuse a parquet file that claims more rows, or far more bytes, than it can hold.

    Raises:
        CircuitError: as it says, or its end is damaged.
    """
    from pyarrow import parquet

    with _reading(str(path)):
        told, size = parquet.read_metadata(path), path.stat().st_size
        groups = (told.row_group(place) for place in range(told.num_row_groups))
        claimed = sum(group.total_byte_size for group in groups)
    if told.num_rows > size or claimed > max(_SMALL, _MOST_FOLD * size):
        raise CircuitError(
            f"{path} claims {told.num_rows} rows and {claimed} bytes in a file of {size}, as no "
            "file of pictures does. Take it from its source again."
        )


def _is_odd(path: Path) -> bool:
    """Whether `datasets` takes a path for something else: a chain of protocols, or a pattern."""
    return any(mark in str(path.absolute()) for mark in ("::", "://", "\\")) and os.sep == "/"


def _load(
    kind: str, source: str, files: dict[str, list[Path]], draw: Draw | None = None
) -> dict[str, "Dataset"]:
    import datasets

    if odd := [str(path) for paths in files.values() for path in paths if _is_odd(path)]:
        raise CircuitError(
            f"{source} has a metadata file, and a path there ({odd[0]}) holds '::', '://' or a "
            "backslash, which `datasets` takes for something else. Rename it."
        )
    # Links stay such.
    names = {
        split: [glob.escape(str(f.absolute())) for f in found] for split, found in files.items()
    }
    with _reading(source):
        splits = datasets.load_dataset(kind, data_files=names, streaming=draw is not None)
        return _drawn(splits, draw)


def _from_hub(name: str, draw: Draw | None) -> dict[str, "Dataset"]:
    import datasets

    with _reading(name), _offline(when=not _hub_answers()):
        return _drawn(datasets.load_dataset(name, streaming=draw is not None), draw)


def _drawn(splits: Any, draw: Draw | None) -> dict[str, "Dataset"]:
    """The splits; of those that stream, as many rows as are asked for, kept in memory."""
    import datasets

    if draw is None:
        return {str(name): split for name, split in splits.items()}
    found = {}
    for name, split in splits.items():
        for column, feature in (split.features or {}).items():
            if isinstance(feature, datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
        random = np.random.default_rng([draw.seed, 3])
        keyed = ((random.random(), row) for row in split.take(_BUFFER * draw.count))
        rows = heapq.nsmallest(draw.count, keyed, key=itemgetter(0))  # holds no more than these
        found[str(name)] = datasets.Dataset.from_list(
            [row for _, row in rows], features=split.features
        )
    return found


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn what `datasets` raises into one line; its bars and logs are for terminals only."""
    import datasets
    from datasets.exceptions import DatasetsError

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hush = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hush:
        datasets.disable_progress_bars()
    try:
        yield
    except ConnectionError as cause:
        raise CircuitError(
            f"{source} is no path here, and the Hugging Face hub can't be reached for a data set "
            "of that name. Check the path; or go online once, so that it is kept for later; or use "
            "'digits', which needs no network."
        ) from cause
    except (
        DatasetsError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
        ValueError,
    ) as cause:  # fmt: skip
        if isinstance(cause, CircuitError):
            raise
        unwritable = unwritable_cache(cause, source=source)
        if unwritable is not None:
            raise CircuitError(f"{source} can't be read: {unwritable}.") from cause
        raise CircuitError(
            f"{source} can't be read: {_first_and_last_line(cause.__cause__ or cause)}. Check that "
            "it exists, that its files are whole, and that they have the same columns."
        ) from cause
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hush:
            datasets.enable_progress_bars()


def _first_and_last_line(cause: BaseException) -> str:
    """What matters of a message of `datasets`, which has the whole story between them."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return " … ".join(reason_of(ValueError(line)) for line in dict.fromkeys([lines[0], lines[-1]]))


def _hub_answers() -> bool:
    """Whether the hub can be reached at all: `datasets` itself tries for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # what it raises depends on the HTTP library that the hub's client uses
        return False
    return True


@contextmanager
def _offline(*, when: bool) -> Iterator[None]:
    """Let `datasets` use only what it has kept from before."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or when
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


_ANNOTATIONS = Path("val") / "val_annotations.txt"


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder is laid out as `tiny-imagenet-200` is: `train/<wnid>/images/…`."""
    marked = (folder / "wnids.txt").is_file() or (folder / _ANNOTATIONS).is_file()
    return marked and any(folder.glob("train/*/images"))


def tiny_imagenet_table(folder: Path) -> Table:
    """Its training and validation images; the test images have no labels and are left out.

    The class names are the wnids, as in the copies on the hub.

    Raises:
        CircuitError: there are no training images, or a line of the annotations is wrong.
    """
    names = sorted(
        place.name
        for place in (folder / "train").iterdir()
        if place.is_dir() and not place.name.startswith(".")
    )
    train = [
        (path, name)
        for name in names
        for path in sorted((folder / "train" / name).glob("images/*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not train:
        raise CircuitError(f"{folder / 'train'} holds no images. Unpack the archive once more.")
    splits = {"train": train}
    if (folder / _ANNOTATIONS).is_file():
        splits["validation"] = _annotated(folder, set(names))
    return files_table(splits, names)


def _annotated(folder: Path, known: set[str]) -> list[tuple[Path, str]]:
    file = folder / _ANNOTATIONS
    rows, wrong = [], []
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in known or Path(fields[0]).name != fields[0]:
            wrong.append(f"{number} ({line[:40]!r})")
        else:
            rows.append((file.parent / "images" / fields[0], fields[1]))
    if wrong:
        raise CircuitError(
            f"{file} has {len(wrong)} lines that are no `file<tab>wnid` with a class of `train`: "
            f"{', '.join(wrong[:3])}. Take it from the archive again."
        )
    return rows
