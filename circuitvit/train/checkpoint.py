"""Where a training has got to, as one safetensors file: weights, AdamW's state, and history.

Tensors are stored flat under `model.<name>` and `optimizer.<name>.<state>`, the rest as JSON in the
file's metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from circuitvit.errors import CircuitError
from circuitvit.files import replacing

_KEY = "circuitvit.training"


@dataclass(frozen=True)
class Checkpoint:
    """A training after some of its epochs.

    Attributes:
        run: what the training is: recipe, model shape, initial weights and data, by name.
        history: one entry for each epoch so far.
        tensors: weights and AdamW's state.
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
    ) -> "Checkpoint":
        """Take down where a training stands; the tensors are the model's own, not copies."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for state, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{state}"] = value
        return cls(run, history, tensors)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put weights and AdamW's state back into a model and its optimizer."""
        prefix = "model."
        weights = {
            n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)
        }
        model.load_state_dict(weights)
        for name, parameter in model.named_parameters():
            start = f"optimizer.{name}."
            # AdamW counts its steps on the CPU; its moments live beside their parameter.
            optimizer.state[parameter] = {
                key.removeprefix(start): value if value.ndim == 0 else value.to(parameter.device)
                for key, value in self.tensors.items()
                if key.startswith(start)
            }

    def save(self, path: Path) -> None:
        """Write the file in one step: a kill leaves the one before."""
        record = {"schema": 1, "run": dict(self.run), "history": list(self.history)}
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.tensors.items()}
        with replacing(path) as beside:
            save_file(tensors, beside, metadata={_KEY: json.dumps(record)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            CircuitError: the file is cut short, or something else.
        """
        try:
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(record["run"], tuple(record["history"]), tensors)
        except (OSError, SafetensorError, KeyError, ValueError) as cause:
            raise CircuitError(
                f"{path} is not a whole training checkpoint ({cause}). Delete it to train from the "
                "start, or choose another folder."
            ) from cause

    def check_run(self, run: Mapping[str, Any], path: Path) -> None:
        """Refuse to go on with another training than the one that the checkpoint is of.

        Raises:
            CircuitError: recipe, model or data differ; every difference is named.
        """
        names = sorted({*self.run, *run})
        differences = [
            f"{name} was {self.run.get(name)!r} and is now {run.get(name)!r}"
            for name in names
            if self.run.get(name) != run.get(name)
        ]
        if differences:
            raise CircuitError(
                f"{path} is the checkpoint of another training: " + "; ".join(differences) + ". "
                "Choose another folder, or go back to what it was to resume it."
            )
