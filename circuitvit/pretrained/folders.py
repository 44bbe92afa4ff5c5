"""Local folders that circuitvit, transformers or timm wrote; told apart by config.json."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.files import read_json
from circuitvit.pretrained import huggingface, timm, torchvision
from circuitvit.pretrained.checkpoints import fit, fitted, read_checkpoint
from circuitvit.pretrained.libraries import first_line, imported, quiet_transformers
from circuitvit.pretrained.sources import Opened, unwrapped
from circuitvit.vit import ViT


def from_folder(folder: Path, checkpoint: str | Path | None) -> Opened:
    """The model in a folder, with its own weights or those of another file.

    Raises:
        CircuitError: the folder is none of a model, or its weights don't fit.
    """
    config = read_json(folder / "config.json", what="model config")
    with torch.random.fork_rng(devices=[]):  # making a model draws weights first
        if isinstance(config, Mapping) and "architecture" in config:
            return _timm(folder, config, checkpoint)
        if isinstance(config, Mapping) and "model_type" in config:
            return _transformers(folder, config, checkpoint)
    found = Opened(ViT.from_pretrained(folder), str(folder))
    return found if checkpoint is None else fitted(found, checkpoint)


def _timm(folder: Path, config: Mapping[str, Any], checkpoint: str | Path | None) -> Opened:
    library = imported("timm")
    try:
        module = library.create_model(f"local-dir:{folder}", pretrained=checkpoint is None)
    except Exception as cause:
        raise CircuitError(
            f"timm can't load {config['architecture']!r} from {folder}: {first_line(cause)}. "
            "A folder of timm holds config.json and model.safetensors, as save_for_hf writes them."
        ) from cause
    found = Opened(module, str(folder))
    return found if checkpoint is None else fitted(found, checkpoint)


def _transformers(folder: Path, config: Mapping[str, Any], checkpoint: str | Path | None) -> Opened:
    cls, settings = _class_of(folder, config)
    if checkpoint is not None:
        return _transformers_with(folder, cls, settings, Path(checkpoint))
    try:
        with quiet_transformers():
            module, told = cls.from_pretrained(
                str(folder), config=settings, output_loading_info=True, dtype="auto"
            )
    except Exception as cause:
        raise CircuitError(
            f"transformers can't load {cls.__name__} from {folder}: {first_line(cause)}."
        ) from cause
    unused = _check_loading(folder, cls.__name__, told)
    return Opened(unwrapped(module), str(folder), unused=unused)


def _class_of(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class that the folder's weights belong to, and its config.

    Raises:
        CircuitError: it is unknown, or no image classifier.
    """
    library = imported("transformers")
    named = [str(name) for name in config.get("architectures") or ()]
    wrong = [name for name in named if "ForImageClassification" not in name]
    if wrong:
        raise CircuitError(
            f"{folder} holds a {wrong[0]}, which has no classifier. Load it with the "
            "…ForImageClassification class of its kind, train the head, and save that."
        )
    try:
        settings = library.AutoConfig.from_pretrained(str(folder))
        auto = library.AutoModelForImageClassification
        mapped = auto._model_mapping[type(settings)]
    except Exception as cause:
        raise CircuitError(
            f"transformers {library.__version__} has no image classifier of type "
            f"{config['model_type']!r}, as {folder} has it ({first_line(cause)})."
        ) from cause
    choices = mapped if isinstance(mapped, tuple) else (mapped,)
    return next((c for c in choices if c.__name__ in named), choices[0]), settings


def _check_loading(folder: Path, kind: str, told: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that were left out.

    Raises:
        CircuitError: parameters had no weights, or weights no parameter.
    """
    surplus = sorted(str(name) for name in told.get("unexpected_keys") or ())
    unused = tuple(name for name in surplus if re.search(huggingface.UNUSED, name))
    missing = sorted(str(name) for name in told.get("missing_keys") or ())
    problems = [f"{n} is missing" for n in missing if not re.search(huggingface.UNUSED, n)]
    problems += [f"{name} is surplus" for name in surplus if name not in unused]
    for entry in told.get("mismatched_keys") or ():
        name, got, expected = (*entry, None, None)[:3]
        problems.append(f"{name} has shape {tuple(got or ())}, expected {tuple(expected or ())}")
    if problems:
        raise CircuitError(f"the weights in {folder} don't fit {kind}: {'; '.join(problems)}.")
    return unused


def _transformers_with(folder: Path, cls: Any, settings: Any, path: Path) -> Opened:
    tensors, _, notes = read_checkpoint(path)
    heads = ("classifier.weight", "cls_classifier.weight")
    head = next((tensors[name] for name in heads if name in tensors), None)
    if head is not None:
        settings.num_labels = len(head)
    module = cls(settings)
    unused = fit(module, tensors, source=str(path))
    return Opened(module, f"{folder} with {path}", None, notes, unused)


def image_size_in(positions: Tensor | None, module: nn.Module) -> int | None:
    """The image size that a checkpoint's positions are for, where it is not the module's."""
    library: Any = timm if timm.knows(module) else torchvision
    if positions is None or not library.knows(module):
        return None
    own = library.read(module)
    patch = own.parts["patch.weight"].shape[-1]
    prefix = own.parts["positions"].shape[1] - (own.image_size // patch) ** 2
    side = math.isqrt(max(positions.shape[1] - prefix, 0))
    if not side or side**2 != positions.shape[1] - prefix or side * patch == own.image_size:
        return None
    return side * patch
