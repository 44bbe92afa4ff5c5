"""Makes a `ViT` of models from elsewhere, exactly, or says why not."""

import copy
from pathlib import Path

from torch import nn

from circuitvit.errors import CircuitError
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


def _from_folder(folder: Path) -> ViT:
    if not folder.is_dir():
        raise CircuitError(
            f"no model at {folder}: there is no such folder. Give a folder that save_pretrained "
            "wrote, or a timm module; names such as 'timm:…' can't be read yet."
        )
    return ViT.from_pretrained(folder)
