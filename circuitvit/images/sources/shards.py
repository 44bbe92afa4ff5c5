"""Whether parquet files belong to one data set, or a folder holds several."""

import glob
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError, in_short
from circuitvit.images.sources.split_expressions import split_of

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
