"""Reads torchvision's VisionTransformer, without importing torchvision.

Dosovitskiy et al. 2021 (ViT); Singh et al. 2022 (SWAG weights).
"""

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.reading import (
    LibraryReading,
    activation_of,
    all_eps,
    eps_problems,
    in_blocks,
    is_from,
    module_kind,
    path_to_linear,
    tensors_by_role,
)

_MLPS = ("MLPBlock", "MLP")
_MODEL = ("torchvision.models.vision_transformer", "VisionTransformer")

REASONS = {
    "SwinTransformer": "its attention is windowed, with relative positions",
    "MaxVit": "its attention is windowed, between convolutions",
}
"""Why models of torchvision that look like ViTs can't be represented."""

RENAMES = (
    (r"^conv_proj\.", "patch."),
    (r"^encoder\.pos_embedding$", "positions"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".ln\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attention.out."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "final_norm."),
    (r"^heads\.(head\.)?", "head."),
)


def knows(module: nn.Module) -> bool:
    """Whether a module is torchvision's VisionTransformer or derived from it."""
    return any((cls.__module__, cls.__name__) == _MODEL for cls in type(module).__mro__)


def problems(source: Any) -> list[str]:
    """Everything about the model that a `ViT` has not."""
    found = list(eps_problems(source))
    if not isinstance(source.conv_proj, nn.Conv2d):
        found.append(f"its patches come from a {type(source.conv_proj).__name__} (conv stem)")
    if not isinstance(source.encoder.ln, nn.LayerNorm):
        found.append(f"the final norm is a {type(source.encoder.ln).__name__}, not a LayerNorm")
    if path_to_linear(source.heads) is None:
        found.append(
            f"its heads are {[type(m).__name__ for m in source.heads.children()]}, not one linear "
            "layer (representation_size adds another)"
        )
    return found + in_blocks([list(_block_problems(block)) for block in source.encoder.layers])


def _block_problems(block: Any) -> Iterator[str]:
    attention: Any = getattr(block, "self_attention", None)
    own = is_from("torchvision", block, "EncoderBlock")
    mlp = getattr(block, "mlp", None)
    plain = is_from("torch", attention, "MultiheadAttention") and is_from(
        "torchvision", mlp, *_MLPS
    )
    if not own or not plain:
        kinds = " and ".join(map(module_kind, (attention, mlp)))
        yield f"{module_kind(block)} with {kinds} is another block"
        return
    if attention.bias_k is not None or attention.add_zero_attn:
        yield "its attention adds keys (add_bias_kv, add_zero_attn)"
    if _activation(block) is None:
        yield f"activation {[type(m).__name__ for m in block.mlp.children()][1:2]}"
    for name in ("ln_1", "ln_2"):
        if not isinstance(getattr(block, name), nn.LayerNorm):
            yield f"{name} is a {type(getattr(block, name)).__name__}, not a LayerNorm"


def _activation(block: Any) -> Any:
    known = [activation_of(module) for module in block.mlp.children()]
    return next((name for name in known if name is not None), None)


def resize(source: Any, image_size: int) -> None:
    """Resample the positions, in place, with torchvision's own function."""
    home = sys.modules[_MODEL[0]]  # a model of it is there, so it was imported
    state = {"encoder.pos_embedding": source.encoder.pos_embedding.detach()}
    new = home.interpolate_embeddings(image_size, source.patch_size, state)
    source.encoder.pos_embedding = nn.Parameter(new["encoder.pos_embedding"])
    source.image_size = image_size
    source.seq_length = source.encoder.pos_embedding.shape[1]


def read(source: Any) -> LibraryReading:
    """The model in our words."""
    parts, unused = tensors_by_role(source, RENAMES)
    blocks = list(source.encoder.layers)
    return LibraryReading(
        source=f"torchvision {type(source).__name__}",
        image_size=source.image_size,
        heads=tuple(block.self_attention.num_heads for block in blocks),
        pooling="class",
        fc_norm=False,
        layer_norm_eps=all_eps(source)[0],
        activation=(_activation(blocks[0]) if blocks else None) or "gelu",
        parts=parts,
        logits=source,
        unused=unused,
    )


def preprocessing_of(source: Any) -> Preprocessing | None:
    """None: a module of torchvision doesn't know its weights' transforms."""
    del source
    return None
