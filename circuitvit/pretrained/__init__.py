"""Converts models of other libraries to a `ViT`, exactly, or says why not."""

from pathlib import Path
from typing import Literal

from torch import nn

from circuitvit.errors import warn
from circuitvit.files import finish_save, read_json, readable_path
from circuitvit.models.circuit_vit import FORMAT, CircuitViT
from circuitvit.models.vit import ViT
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.conversion import Examination
from circuitvit.pretrained.loading import examine
from circuitvit.torch_modes import in_default_modes

__all__ = ["Examination", "examine", "load_saved", "load_vit"]


@in_default_modes
def load_vit(
    source: nn.Module | str | Path,
    *,
    image_size: int | None = None,
    checkpoint: str | Path | None = None,
    heads: int | None = None,
    preprocessing: Preprocessing | None = None,
    weights: Literal["ema", "model"] | None = None,
) -> ViT:
    """A plain ViT in eval mode with its own copy of the weights, in the source's dtype.

    Its logits were compared with the source's on two random images. `preprocessing` of the result
    is what the source says of its images, as far as that is known. What had to be guessed (a bare
    checkpoint's activation, ε and pooling; mean and std beside class names) is warned of.

    Args:
        source: a model of timm (`VisionTransformer`, `VisionTransformerDistilled`), transformers
            (ViT, ViT-MSN, DeiT, Dinov2, I-JEPA and SigLIP for image classification) or torchvision
            (`VisionTransformer`), or a `ViT`; a name, `timm:NAME`, `hf:REPOSITORY` or
            `torchvision:NAME`, whose weights are fetched; a folder that circuitvit, transformers
            or timm wrote; or a checkpoint file (.safetensors, .pth, .pt, .bin).
        image_size: side in pixels; positions are resampled to it as the source's library does.
        checkpoint: a file whose weights go into the architecture that `source` names or is; the
            source's class names are forgotten then, since the file's classes are its own.
        heads: attention heads, which a bare checkpoint file doesn't tell.
        preprocessing: what to take in place of what the source says.
        weights: "ema" for the average, "model" for the weights themselves, where a checkpoint file
            has both; by default timm's choice, the average, with a warning.

    Raises:
        CircuitError: the source can't be represented or read; every reason is named.
    """
    found = examine(
        source,
        image_size=image_size,
        checkpoint=checkpoint,
        heads=heads,
        preprocessing=preprocessing,
        weights=weights,
    )
    if found.guessed:
        warn(" ".join(found.guessed))
    return found.vit


def load_saved(folder: str | Path) -> ViT | CircuitViT:
    """A model of ours in eval mode, of either kind.

    Args:
        folder: which `save_pretrained` of a `ViT` or a `CircuitViT` wrote; or what else `load_vit`
            takes.

    Raises:
        CircuitError: it can't be read.
    """
    place = readable_path(folder, "model")
    finish_save(place)
    path = place / "config.json"
    known = read_json(path, what="model config", finite=False) if path.is_file() else None
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        return load_vit(folder)
    model = CircuitViT.from_pretrained(folder)
    model.check_weights()
    return model
