"""Where images come from: a folder of pictures, parquet files, or a data set of the hub.

Everything is read through `datasets`, which is imported here alone and only when needed.
"""

import glob
import heapq
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitvit.errors import CircuitError
from circuitvit.files import unwritable_cache
from circuitvit.images.folders import files_below, images_by_split, is_metadata
from circuitvit.images.slices import split_of

if TYPE_CHECKING:
    from datasets import Dataset

_BUFFER = 8
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


def read_source(source: str, draw: Draw | None = None) -> dict[str, "Dataset"]:
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
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if files:
        strangers = [file.name for file in files if file.suffix != ".parquet"]
        if strangers:
            raise CircuitError(
                f"{source} is not a parquet file ({strangers[0]}). Give a parquet or .npz file, a "
                "folder of images or of parquet files, the id of a data set on the hub, or "
                "'digits'."
            )
        return _load("parquet", source, _by_split(files, path.parent), draw)
    if not _HUB_ID.fullmatch(source) or path.suffix == ".parquet":
        raise CircuitError(
            f"there is nothing at {source}. Check the path; it may be a folder of images, a "
            "parquet file or a folder of them, or a .npz file. 'digits' needs no files."
        )
    return _from_hub(source, draw)


def read_given(source: Any, draw: Draw | None = None) -> dict[str, "Dataset"]:
    """The splits of what `datasets` has loaded already: a Dataset, or a DatasetDict of several.

    Raises:
        CircuitError: it is neither, or comes in a stream of which no count is asked for.
    """
    splits = source if isinstance(source, Mapping) else {"train": source}
    strangers = [split for split in splits.values() if not hasattr(split, "select_columns")]
    if strangers or not splits:
        what = type(strangers[0] if strangers else source).__name__
        raise CircuitError(
            f"source is a {what}, expected a path, a hub id, 'digits', or a Dataset or DatasetDict "
            "of `datasets`. For arrays there is ImageSet.from_arrays."
        )
    if draw is None and not all(hasattr(split, "__len__") for split in splits.values()):
        raise CircuitError("the data set is a stream. Give streaming=True and a limit.")
    return _drawn(splits, draw)


def _from_folder(folder: Path, draw: Draw | None) -> dict[str, "Dataset"]:
    parquet = [
        path
        for path in files_below(folder)
        if path.suffix == ".parquet" and path.is_file() and not is_metadata(path)
    ]
    if parquet:
        return _load("parquet", str(folder), _by_split(parquet, folder), draw)
    images = images_by_split(folder)
    if draw is not None:
        raise CircuitError(
            f"{folder} is a folder of images, which can't be streamed. Leave streaming out: only "
            "the images within the limit are decoded anyway."
        )
    return _load("imagefolder", str(folder), images)


def _by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """Files by the split that their names say, `train` where they say none."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        splits.setdefault(split_of(str(name.with_suffix(""))) or "train", []).append(file)
    return splits


def _load(
    kind: str, source: str, files: dict[str, list[Path]], draw: Draw | None = None
) -> dict[str, "Dataset"]:
    import datasets

    # Links stay such: the class of an image is the folder that the link lies in.
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
    except (DatasetsError, OSError, ValueError, RuntimeError) as cause:
        unwritable = unwritable_cache(cause, source=source)
        if unwritable is not None:
            raise CircuitError(f"{source} can't be read: {unwritable}.") from cause
        lines = str(cause.__cause__ or cause).strip().splitlines() or [type(cause).__name__]
        reason = " … ".join(dict.fromkeys([lines[0], lines[-1]]))
        raise CircuitError(
            f"{source} can't be read: {reason}. Check that it exists, that its files are whole, "
            "and that they have the same columns."
        ) from cause
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hush:
            datasets.enable_progress_bars()


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
