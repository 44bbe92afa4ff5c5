"""What a training tells TensorBoard: five curves, a point an epoch.

TensorBoard is an extra, `circuitvit[tensorboard]`, and imported only when asked for.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files import check_folder_writable

CURVES = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
}
"""What a curve is called, by the history's name for it."""


@contextmanager
def curves_in(
    folder: str | os.PathLike[str] | None,
    history: Sequence[Mapping[str, Any]],
    *,
    main: bool = True,
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that adds an epoch of the history to the curves in a folder.

    Points of later epochs than the history's are purged, as of a run that was killed between
    writing them and its checkpoint; so no epoch has two.

    Args:
        folder: where TensorBoard looks; None to write nothing.
        history: of the epochs so far; they are written too where the folder has no curves yet.
        main: whether this process writes; every one refuses what can't be done.

    Raises:
        CircuitError: TensorBoard isn't installed, or the folder can't be written to.
    """
    if folder is None:
        yield lambda entry: None
        return
    writer_of = _writer()
    if not main:
        yield lambda entry: None
        return
    _check_writable(folder)
    earlier = any(Path(folder).glob("events.out.tfevents.*"))
    try:
        writer = writer_of(str(folder), purge_step=len(history) + 1 if earlier else None)
    except OSError as cause:
        raise CircuitError(
            f"cannot write TensorBoard's curves to {folder} ({cause}). Name a folder that can be "
            "written to."
        ) from cause

    def write(entry: Mapping[str, Any]) -> None:
        for name, tag in CURVES.items():
            if entry.get(name) is not None:
                writer.add_scalar(tag, entry[name], entry["epoch"])
        writer.flush()

    try:
        for entry in () if earlier else history:
            write(entry)
        yield write
    finally:
        writer.close()


def _check_writable(folder: str | os.PathLike[str]) -> None:
    try:
        check_folder_writable(folder)
    except CircuitError as cause:
        raise CircuitError(f"cannot write TensorBoard's curves to {folder}: {cause}") from cause


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as cause:
        raise CircuitError(
            f"tensorboard= needs TensorBoard, which can't be imported ({cause}). Install it with "
            "pip install 'circuitvit[tensorboard]', or leave tensorboard= out."
        ) from cause
    return SummaryWriter
