"""A `ViT` as a folder that timm or transformers reads."""

import copy
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import nn

from circuitvit.errors import CircuitError, reason_of
from circuitvit.export.into_timm import (
    ARCHITECTURES,
    architecture_of,
    options_of,
    pretrained_cfg_of,
    to_timm,
)
from circuitvit.export.into_transformers import processor_dict, to_transformers
from circuitvit.export.library_export import exportable_vit
from circuitvit.files import finish_save, read_json, write_json, writing_folder
from circuitvit.files.locks import is_staging
from circuitvit.models.vit import ViT
from circuitvit.pretrained.conversion import compare
from circuitvit.pretrained.libraries.processors import FILE as PROCESSOR
from circuitvit.pretrained.libraries.reading import imported, quiet_transformers
from circuitvit.torch_modes import in_default_modes

Folder = Literal["timm", "transformers"]
KINDS: tuple[str, ...] = get_args(Folder)
WRITTEN = ("config.json", "model*.safetensors", "model.safetensors.index.json", PROCESSOR)
"""Patterns of the files in such a folder."""
_MARKS = {"timm": "architecture", "transformers": "model_type"}


@in_default_modes
def write_folder(
    vit: ViT, folder: str | Path, *, to: Folder, dtype: torch.dtype | None = None
) -> Path:
    """Write a folder that `timm.create_model("local-dir:…")` or `from_pretrained` reads.

    It is written beside its place, read back with the library, and compared.

    Args:
        vit: the model.
        folder: a new one, an empty one, or one that this wrote before.
        to: the library.
        dtype: of the weights in the folder; by default the model's.

    Raises:
        CircuitError: the library has no model of this shape, the folder holds something else or
            can't be written, or what was read back computes something else.
    """
    target = Path(folder)
    _check_target(target, to)
    ours = copy.deepcopy(exportable_vit(vit)).to(device="cpu", dtype=dtype).eval()
    ours.preprocessing = ours.fitting_preprocessing()
    module = to_timm(ours) if to == "timm" else to_transformers(ours)
    if to == "timm" and architecture_of(ours.config) is None:
        raise CircuitError(
            f"a folder of timm can't say that LayerNorms have ε {ours.config.layer_norm_eps:zg} "
            f"(only {', '.join(f'{eps:zg}' for eps in ARCHITECTURES)}; distilled only 1e-06). Use "
            "circuitvit.to_timm(vit) in Python, or to='transformers'."
        )
    with writing_folder(target, owned=WRITTEN) as folder_beside:
        if to == "timm":
            _write_timm(ours, module, folder_beside)
        else:
            _write_transformers(ours, module, folder_beside)
        _compare(ours, folder_beside, to)
    return target


def _check_target(target: Path, to: str) -> None:
    if target.is_file():
        raise CircuitError(f"{target} is a file; name a folder for to={to!r}.")
    finish_save(target)
    there = list(target.iterdir()) if target.is_dir() else []
    config = target / "config.json"
    if config not in there and all(map(_is_ours, there)):  # new, empty, or left by a kill
        return
    known = read_json(config, what="model config", finite=False) if config.is_file() else {}
    if not isinstance(known, dict) or _MARKS[to] not in known:
        raise CircuitError(
            f"{target} holds something else than a model of {to}, which would be mixed up with it. "
            "Name a new folder."
        )


def _is_ours(path: Path) -> bool:
    """Whether a file is one of those that this writes."""
    return is_staging(path.name) or any(fnmatch(path.name, pattern) for pattern in WRITTEN)


def _write_timm(vit: ViT, module: nn.Module, folder: Path) -> None:
    config = pretrained_cfg_of(vit, vit.fitting_preprocessing())
    names = config.pop("label_names", None)
    options = options_of(vit.config)
    values: dict[str, Any] = {
        "architecture": config.pop("architecture"),
        "num_classes": vit.config.classes,
        "num_features": vit.config.width,
        "global_pool": options["global_pool"],
        "model_args": options,
        "pretrained_cfg": config,
    }
    if names is not None:
        values["label_names"] = names
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", values)


def _write_transformers(vit: ViT, module: nn.Module, folder: Path) -> None:
    saved: Any = module
    with quiet_transformers():
        saved.save_pretrained(folder)
    processor = processor_dict(vit)
    if processor is not None:
        write_json(folder / PROCESSOR, processor)


def _compare(vit: ViT, folder: Path, to: str) -> None:
    """Read the folder back as its users will; timm does that in single precision."""
    library = imported(to)
    try:
        with torch.random.fork_rng(devices=[]):
            if to == "timm":
                module = library.create_model(f"local-dir:{folder}", pretrained=True)
            else:
                auto = library.AutoModelForImageClassification
                with quiet_transformers():
                    module = auto.from_pretrained(
                        str(folder), dtype="auto", trust_remote_code=False, weights_only=True
                    )
    except Exception as cause:
        raise CircuitError(
            f"{to} can't read what was written: {reason_of(cause)}. It is not kept; please report "
            f"this with the model's config: {json.dumps(vit.shape_as_dict())}"
        ) from cause
    module = module.eval()
    ours = copy.deepcopy(vit).float() if to == "timm" else vit
    compare(ours, lambda x: getattr(out := module(x), "logits", out), source=f"{to} folder")
