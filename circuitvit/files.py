"""Files are written beside their place and renamed, so a kill never leaves half a file."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh path in the same folder; when the block succeeds, it becomes `path`.

    Raises:
        CircuitError: the folder can't be made or written to. `path` is then as it was.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as cause:
        raise _unwritable(target, cause) from cause
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        # mkstemp makes private files; the result gets the mode that `open` would have given it.
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod(0o666 & ~mask)
        _move(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse now what could not be written after long work; the folder is made.

    Raises:
        CircuitError: the folder can't be made or written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as cause:
        raise _unwritable(target, cause) from cause


def _unwritable(target: Path, cause: OSError) -> CircuitError:
    return CircuitError(
        f"cannot write {target}: {cause.strerror or cause}. Name a folder that can be written to."
    )


def _move(beside: Path, target: Path) -> None:
    try:
        beside.replace(target)
    except OSError as cause:
        raise CircuitError(
            f"cannot write {target}: {cause.strerror or cause}. Name a file, not a folder."
        ) from cause


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` in one step and return the path."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON to `path` in one step and return the path.

    Raises:
        CircuitError: the file can't be written, or a value is none of JSON's; it is named.
    """
    return write_text(path, _encoded(value, indent=1) + "\n")


def plain_json(value: Any) -> Any:
    """What reading a value's JSON gives: lists for tuples, texts for the keys of dicts.

    Raises:
        CircuitError: a value is none of JSON's; it is named.
    """
    return json.loads(_encoded(value))


def _encoded(value: Any, *, indent: int | None = None) -> str:
    try:
        text = json.dumps(
            value, indent=indent, ensure_ascii=False, allow_nan=False, default=_number
        )
        text.encode("utf-8")
    except (TypeError, ValueError) as cause:
        place = next(_unencodable(value, ""), f"a value ({cause})")
        raise CircuitError(
            f"nothing was written, since a file of JSON can't hold {place}. Put a number, text, "
            "list or dict there."
        ) from cause
    return text


def _number(value: Any) -> Any:
    """Python's own number for numpy's or torch's."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(type(value).__name__)


def _unencodable(value: Any, where: str) -> Iterator[str]:
    """The values that JSON has not, each with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unencodable(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _unencodable(item, f"{where}[{place}]")
    else:
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False, default=_number).encode()
        except (TypeError, ValueError):
            yield f"{where or 'it'} = {value!r}"


def read_json(path: str | os.PathLike[str], *, what: str) -> Any:
    """Read a JSON file; `what` names its kind in the error message.

    Raises:
        CircuitError: there is no such file, or it is not whole JSON.
    """
    source = Path(path)
    try:
        # An editor on Windows may have put a byte-order mark before it.
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as cause:
        raise CircuitError(f"no {what} at {source}: there is no such file.") from cause
    except OSError as cause:
        raise CircuitError(f"cannot read the {what} at {source}: {cause.strerror}.") from cause
    except (ValueError, RecursionError) as cause:
        raise CircuitError(
            f"{source} is not a whole {what}: {cause}. It was cut short or is another kind "
            "of file; make it again or take it from a backup."
        ) from cause


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def unwritable_cache(cause: BaseException, *, source: str = "") -> str | None:
    """That a library can't write its cache, and what to do; None if that is not the cause.

    Args:
        cause: what the library raised.
        source: what was read; trouble with files in it is no trouble with the cache.
    """
    known: set[int] = set()
    step: BaseException | None = cause
    while step is not None and id(step) not in known:
        known.add(id(step))
        if isinstance(step, OSError) and step.errno in _UNWRITABLE and step.filename:
            place = str(step.filename)
            if not source or not Path(place).is_relative_to(Path(source)):
                return (
                    f"the cache can't be written: {step.strerror} at {place}. Make room or "
                    "permission there, or set HF_HOME (for torchvision TORCH_HOME) to a folder "
                    "that can be written"
                )
        step = step.__cause__ or step.__context__
    return None
