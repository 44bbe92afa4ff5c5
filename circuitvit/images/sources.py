"""Where images come from: a folder of pictures, parquet files, or a data set of the hub.

Everything is read through `datasets`, which is imported here alone and only when needed.
"""

import glob
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from circuitvit.errors import CircuitError

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "val|valid|validation|dev",
    "test": "test|testing",
}
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def read_source(source: str) -> dict[str, "Dataset"]:
    """The splits of a source, named `train`, `validation` and `test` as far as it has them.

    A source with one split only, whatever its name, has `train`. Further splits of a hub data set
    (`extra`, `unsupervised`) are left out.

    Args:
        source: a folder of images, one folder a class, with or without `train`, `test`, … above;
            a parquet file, a folder of them, or a pattern such as `data/cifar10_*.parquet`, whose
            names say the split; or the id of a data set on the Hugging Face hub.

    Raises:
        CircuitError: there is nothing there, or it can't be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if files:
        strangers = [file.name for file in files if file.suffix != ".parquet"]
        if strangers:
            raise CircuitError(
                f"{source} is not a parquet file ({strangers[0]}). Give a parquet file, a folder "
                "of images or of parquet files, the id of a data set on the hub, or 'digits'."
            )
        return _load("parquet", source, _by_split(files, path.parent))
    if not _HUB_ID.fullmatch(source) or path.suffix == ".parquet":
        raise CircuitError(
            f"there is nothing at {source}. Check the path; it may be a folder of images, a "
            "parquet file or a folder of them. 'digits' needs no files."
        )
    return _from_hub(source)


def _from_folder(folder: Path) -> dict[str, "Dataset"]:
    parquet = [file for file in sorted(folder.rglob("*.parquet")) if not _is_metadata(file)]
    if parquet:
        return _load("parquet", str(folder), _by_split(parquet, folder))
    images = _images_below(folder)
    if not images:
        raise CircuitError(
            f"the folder {folder} holds no images and no parquet files. Put the images into it, "
            "one folder a class."
        )
    parts = {place: _split_of(place.name) for place in sorted(folder.iterdir()) if place.is_dir()}
    # A class may be called `train` too: folders mean splits only where all of them name one.
    if not parts or not all(parts.values()) or any(image.parent == folder for image in images):
        return _load("imagefolder", str(folder), {"train": images})
    files: dict[str, list[Path]] = {}
    for place, split in parts.items():
        found = _images_below(place)
        if any(image.parent == place for image in found) and not any(map(_is_metadata, found)):
            raise CircuitError(
                f"{place} holds images beside one another, so their classes are not known. Make "
                "one folder a class in it."
            )
        files.setdefault(split or "train", []).extend(found)
    return _load("imagefolder", str(folder), files)


def _images_below(folder: Path) -> list[Path]:
    """The images of a folder at any depth, and the metadata files that describe them."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    kinds = {*ImageFolder.EXTENSIONS}
    files = sorted(p for p in folder.rglob("*") if not p.name.startswith(".") and p.is_file())
    return [p for p in files if p.suffix.lower() in kinds or _is_metadata(p)]


def _is_metadata(path: Path) -> bool:
    return path.stem == "metadata"


def _by_split(files: list[Path], root: Path) -> dict[str, list[Path]]:
    """Files by the split that their names say, `train` where they say none."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        splits.setdefault(_split_of(str(name.with_suffix(""))) or "train", []).append(file)
    return splits


def _split_of(name: str) -> str | None:
    """The split that a name speaks of in its last such word: `animals_valid` is validation."""
    found = None
    for word in re.findall(r"[a-z]+", name.lower()):
        for split, words in _SPLIT_WORDS.items():
            found = split if re.fullmatch(words, word) else found
    return found


def _load(kind: str, source: str, files: dict[str, list[Path]]) -> dict[str, "Dataset"]:
    import datasets

    names = {
        split: [glob.escape(str(f.resolve())) for f in found] for split, found in files.items()
    }
    with _reading(source):
        splits = datasets.load_dataset(kind, data_files=names)
    return _with_train({str(name): split for name, split in splits.items()}, source)


def _from_hub(name: str) -> dict[str, "Dataset"]:
    import datasets

    with _reading(name), _offline(when=not _hub_answers()):
        loaded = dict(datasets.load_dataset(name))
    if len(loaded) > 1:
        loaded = {s: split for n, split in loaded.items() if (s := _split_of(n)) is not None}
    return _with_train(loaded, name)


def _with_train(splits: dict[str, "Dataset"], source: str) -> dict[str, "Dataset"]:
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise CircuitError(
            f"{source} has the splits {sorted(splits)} but none to train on. Name one of its files "
            "or folders 'train', or give a single one."
        )
    return splits


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
