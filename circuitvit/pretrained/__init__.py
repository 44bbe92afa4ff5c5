"""Makes a `ViT` of models from elsewhere, exactly, or says why not."""

import copy
from pathlib import Path

from torch import nn

from circuitvit.circuit_vit import FORMAT, CircuitViT
from circuitvit.errors import CircuitError
from circuitvit.files import read_json
from circuitvit.pretrained.timm import from_timm, is_timm_vit
from circuitvit.vit import ViT


def load_vit(source: nn.Module | str | Path) -> ViT:
    """A plain ViT in eval mode with its own copy of the weights.

    Args:
        source: a timm `VisionTransformer` with class-token pooling, a `ViT`, or a folder that
            `ViT.save_pretrained` wrote.

    Raises:
        CircuitError: the source can't be represented or read; every reason is named.
    """
    if isinstance(source, ViT):
        vit = copy.deepcopy(source).eval()
    elif isinstance(source, nn.Module) and is_timm_vit(source):
        vit = from_timm(source)
    elif isinstance(source, (str, Path)):
        vit = _from_folder(Path(source))
    else:
        raise CircuitError(
            f"can't make a ViT of {type(source).__module__}.{type(source).__name__}. Give a timm "
            "VisionTransformer with class-token pooling, a circuitvit.ViT, or a folder of ours; "
            "transformers and torchvision models can't be read yet."
        )
    vit.check_weights()
    return vit


def load_saved(folder: str | Path) -> ViT | CircuitViT:
    """A model of ours in eval mode, of either kind.

    Args:
        folder: which `save_pretrained` of a `ViT` or a `CircuitViT` wrote.

    Raises:
        CircuitError: it can't be read.
    """
    path = Path(folder) / "config.json"
    known = read_json(path, what="model config") if path.is_file() else None
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        return load_vit(folder)
    model = CircuitViT.from_pretrained(folder)
    model.check_weights()
    return model


def _from_folder(folder: Path) -> ViT:
    if not folder.is_dir():
        raise CircuitError(
            f"no model at {folder}: there is no such folder. Give a folder that save_pretrained "
            "wrote, or a timm module; names such as 'timm:…' can't be read yet."
        )
    return ViT.from_pretrained(folder)
