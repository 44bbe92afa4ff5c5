"""The state of a training as one safetensors file: weights, AdamW's state, and history.

Tensors are stored flat under `model.<name>` and `optimizer.<name>.<state>`, the rest as JSON in the
file's metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from circuitvit.errors import CircuitError, in_short
from circuitvit.files.restoring import UnfitError, restored
from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.train.recipe import Recipe

_KEY = "circuitvit.training"
_LATER = ("class names", "preprocessing", "teacher.")
"""Prefixes of names that a run got in a later version; older checkpoints don't have them."""


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A training after some of its epochs.

    Attributes:
        run: what identifies the training: recipe, model shape, initial weights and data, by name.
        history: one entry for each epoch so far.
        tensors: weights and AdamW's state, and if used, the weight average, the best weights and
            the scale of fp16.
    """

    run: Mapping[str, Any]
    history: tuple[dict[str, Any], ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        run: Mapping[str, Any],
        history: tuple[dict[str, Any], ...],
        model: nn.Module,
        optimizer: Optimizer,
        more: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> "TrainingCheckpoint":
        """The state of a training; the tensors are the model's own, not copies.

        Args:
            run: see the attributes.
            history: likewise.
            model: what is trained.
            optimizer: of its parameters.
            more: other tensors by the name of their part, which `part` returns.
        """
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for state, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{state}"] = value
        for part, values in (more or {}).items():
            tensors |= {f"{part}.{name}": value for name, value in values.items()}
        return cls(run, history, tensors)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, without its name; none if there is no such part."""
        start = f"{name}."
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Load weights and AdamW's state into a model and its optimizer."""
        model.load_state_dict(self.part("model"))
        for name, parameter in model.named_parameters():
            # AdamW's step count is on the CPU, its moments are on the parameter's device.
            state = {
                key: value if value.ndim == 0 else value.to(parameter.device)
                for key, value in self.part(f"optimizer.{name}").items()
            }
            if state:  # frozen parameters have none
                optimizer.state[parameter] = state

    def save(self, path: Path) -> None:
        """Write the file in one step: a kill leaves the previous one.

        Raises:
            CircuitError: it can't be written, as on a full disk. The previous one is left.
        """
        record = {"schema": 1, "run": dict(self.run), "history": list(self.history)}
        for half in path.parent.glob(f".{path.name}.*"):  # left by killed runs of old versions
            if half.is_file():
                half.unlink(missing_ok=True)
        try:
            write_tensors(path, self.tensors, {_KEY: json.dumps(record)})
        except CircuitError as cause:
            kept = len(self.history) - 1
            size = sum(tensor.nbytes for tensor in self.tensors.values())
            reason = str(cause).removeprefix(f"cannot write {path}: ").partition(". ")[0]
            raise CircuitError(
                f"cannot write the checkpoint {path} of {size / 1e6:z,.1f} MB after epoch "
                f"{kept + 1}: {reason}. "
                + (f"That of epoch {kept} is left as it was. " if path.exists() else "")
                + "Make room, twice its size, and run the same again: it resumes there."
            ) from cause

    @classmethod
    def load(cls, path: Path) -> "TrainingCheckpoint":
        """Read what `save` wrote.

        Raises:
            CircuitError: the file is cut short, or something else.
        """
        try:
            tensors, metadata = read_tensors(path)
            record = restored(_Record, told_in(metadata, _KEY))
            return cls(record.run, record.history, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as cause:
            raise CircuitError(
                f"{path} is not a whole training checkpoint ({cause}). Delete it to train from the "
                "start, or choose another folder."
            ) from cause

    def check_run(self, run: Mapping[str, Any], path: Path) -> None:
        """Refuse to resume another training than the checkpoint's.

        Raises:
            CircuitError: recipe, model or data differ; every difference is named.
        """
        # Fields of the recipe that are newer than the checkpoint had their defaults.
        before = {f"recipe.{field.name}": field.default for field in fields(Recipe)} | {**self.run}
        differences = [
            f"{name} was {before.get(name)!r} and is now {run.get(name)!r}"
            for name in sorted({*before, *run})
            if before.get(name) != run.get(name) and not _came_later(name, before, run)
        ]
        if differences:
            raise CircuitError(
                f"{path} is the checkpoint of another training: " + "; ".join(differences) + ". "
                "Choose another folder, or use the earlier values to resume it."
            )


def _came_later(name: str, *runs: Mapping[str, Any]) -> bool:
    """Whether a name is of a later version and missing in one of the runs."""
    return name.startswith(_LATER) and not all(name in run for run in runs)


@dataclass(frozen=True)
class _Record:
    """The metadata of a checkpoint's file."""

    schema: int
    run: Mapping[str, Any]
    history: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        left: list[Any] = [value for entry in self.history for value in entry.values()]
        while left:
            item = left.pop()
            if isinstance(item, bool | str):
                raise UnfitError(f"{in_short(item, most=60)} in the history is not a number")
            if isinstance(item, list | dict):
                left += item.values() if isinstance(item, dict) else item
