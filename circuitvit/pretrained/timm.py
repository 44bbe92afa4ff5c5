"""timm's VisionTransformer as a `ViT`.

LayerScale is folded into the output projections, and positions that cover the patches only get zero
rows for the prefix. Knows timm by names alone and never imports it.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from circuitvit.config import Activation, ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.vit import ViT

_MODEL = ("timm.models.vision_transformer", "VisionTransformer")
_BLOCK = ("timm.models.vision_transformer", "Block")


def is_timm_vit(module: nn.Module) -> bool:
    """Whether a module is timm's VisionTransformer or derived from it."""
    return any((cls.__module__, cls.__name__) == _MODEL for cls in type(module).__mro__)


def from_timm(module: nn.Module) -> ViT:
    """Convert, and compare the logits with the source's on two images before returning.

    Raises:
        CircuitError: the model has parts that a `ViT` has not; every one is named.
    """
    source = cast(Any, copy.deepcopy(module).eval())
    problems = _problems(source)
    if problems:
        raise CircuitError(
            f"this timm {type(module).__name__} can't be represented yet: "
            + "; ".join(problems)
            + "."
        )
    weights, left = _weights(source)
    if left:
        raise CircuitError(
            f"this timm model has parameters that no one reads here: {sorted(left)}. "
            "It is not the plain VisionTransformer."
        )
    vit = ViT.from_weights(_config(source), weights, source=f"timm {type(module).__name__}").eval()
    _compare(vit, source)
    return vit


def _problems(source: Any) -> list[str]:
    """Everything about the model that a `ViT` has not."""
    embed, blocks = source.patch_embed, list(source.blocks)
    kernel, size = embed.proj.kernel_size, embed.img_size
    epsilons = sorted({m.eps for m in source.modules() if isinstance(m, nn.LayerNorm)})
    one_norm = isinstance(source.norm, nn.LayerNorm) and isinstance(source.fc_norm, nn.Identity)
    found = {
        f"global_pool={source.global_pool!r} (only 'token')": source.global_pool != "token",
        "pre_norm=True": not isinstance(source.norm_pre, nn.Identity),
        "the final norm is not one LayerNorm before pooling": not one_norm,
        "there is no head (num_classes=0)": not isinstance(source.head, nn.Linear),
        "patches are not square": kernel[0] != kernel[1],
        "images are not square": size is None or size[0] != size[1],
        "a norm in the patch embedding": not isinstance(embed.norm, nn.Identity),
        f"LayerNorms with different eps {epsilons}": len(epsilons) > 1,
    }
    problems = [text for text, is_so in found.items() if is_so]
    return problems + [f"block {i}: {p}" for i, b in enumerate(blocks) for p in _block_problems(b)]


def _block_problems(block: Any) -> list[str]:
    if (type(block).__module__, type(block).__name__) != _BLOCK:
        return [f"{type(block).__name__} is not timm's pre-norm Block"]
    if type(block.attn).__name__ != "Attention" or type(block.mlp).__name__ != "Mlp":
        return [f"{type(block.attn).__name__} with {type(block.mlp).__name__}"]
    plain = (nn.Identity, nn.LayerNorm)
    found = {
        "scale_attn_norm=True": not isinstance(block.attn.norm, nn.Identity),
        "gated attention": getattr(block.attn, "gate", None) is not None,
        "scale_mlp_norm=True": not isinstance(block.mlp.norm, nn.Identity),
        "norm1 is not a LayerNorm": not isinstance(block.norm1, nn.LayerNorm),
        "norm2 is not a LayerNorm": not isinstance(block.norm2, nn.LayerNorm),
        "q_norm is not a LayerNorm": not isinstance(block.attn.q_norm, plain),
        "k_norm is not a LayerNorm": not isinstance(block.attn.k_norm, plain),
        f"activation {type(block.mlp.act).__name__}": _activation(block.mlp.act) is None,
    }
    return [text for text, is_so in found.items() if is_so]


def _activation(module: nn.Module) -> Activation | None:
    name = type(module).__name__
    if name == "QuickGELU":
        return "quick_gelu"
    if name == "GELUTanh" or getattr(module, "approximate", "") == "tanh":
        return "gelu_tanh"
    return "gelu" if name == "GELU" else None


def _config(source: Any) -> ViTConfig:
    blocks = list(source.blocks)
    embed = source.patch_embed
    return ViTConfig(
        image_size=embed.img_size[0],
        patch_size=embed.proj.kernel_size[0],
        channels=embed.proj.in_channels,
        classes=source.head.out_features,
        width=source.embed_dim,
        heads=tuple(block.attn.num_heads for block in blocks),
        head_width=tuple(block.attn.head_dim for block in blocks),
        mlp_width=tuple(block.mlp.fc1.out_features for block in blocks),
        class_token=True,
        register_tokens=source.num_prefix_tokens - 1,
        pooling="class",
        qkv_bias=blocks[0].attn.qkv.bias is not None if blocks else True,
        qk_norm=isinstance(blocks[0].attn.q_norm, nn.LayerNorm) if blocks else False,
        output_bias=True,
        layer_norm_eps=source.norm.eps,
        activation=(_activation(blocks[0].mlp.act) if blocks else None) or "gelu",
    )


def _weights(source: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Our state dict, and the source's keys that were not used."""
    old = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
    width = source.embed_dim
    new = {
        "patch.weight": old.pop("patch_embed.proj.weight"),
        "class_token": old.pop("cls_token").reshape(width),
        "final_norm.weight": old.pop("norm.weight"),
        "final_norm.bias": old.pop("norm.bias"),
        "head.weight": old.pop("head.weight"),
        "head.bias": old.pop("head.bias"),
    }
    zeros = new["class_token"].new_zeros
    new["patch.bias"] = old.pop("patch_embed.proj.bias", zeros(width))
    if "reg_token" in old:
        new["register_tokens"] = old.pop("reg_token")[0]
    new["positions"] = _positions(source, old.pop("pos_embed", None), zeros)
    for index in range(len(source.blocks)):
        _move_block(old, new, f"blocks.{index}.", zeros(width))
    return new, set(old)


def _positions(source: Any, given: Tensor | None, zeros: Any) -> Tensor:
    prefix, width = source.num_prefix_tokens, source.embed_dim
    patches = source.patch_embed.num_patches
    if given is None:
        return zeros(prefix + patches, width)
    if given.shape[1] == patches:
        return torch.cat([zeros(prefix, width), given[0]])
    return given[0]


def _move_block(
    old: dict[str, Tensor], new: dict[str, Tensor], prefix: str, no_bias: Tensor
) -> None:
    moves = {"norm1": "ln1", "norm2": "ln2", "attn.qkv": "attention.qkv", "mlp.fc1": "mlp.fc1"}
    moves |= {"attn.q_norm": "attention.q_norm", "attn.k_norm": "attention.k_norm"}
    for theirs, ours in moves.items():
        for kind in ("weight", "bias"):
            if f"{prefix}{theirs}.{kind}" in old:
                new[f"{prefix}{ours}.{kind}"] = old.pop(f"{prefix}{theirs}.{kind}")
    scales = [old.pop(f"{prefix}ls{i}.gamma", torch.ones_like(no_bias)) for i in (1, 2)]
    out, fc2 = f"{prefix}attn.proj.", f"{prefix}mlp.fc2."
    new[f"{prefix}attention.out.weight"] = scales[0][:, None] * old.pop(f"{out}weight")
    new[f"{prefix}output_bias"] = scales[0] * old.pop(f"{out}bias", no_bias)
    new[f"{prefix}mlp.fc2.weight"] = scales[1][:, None] * old.pop(f"{fc2}weight")
    new[f"{prefix}mlp.fc2.bias"] = scales[1] * old.pop(f"{fc2}bias", no_bias)
    rows = new[f"{prefix}mlp.fc1.weight"][:, 0]
    new.setdefault(f"{prefix}mlp.fc1.bias", torch.zeros_like(rows))


@torch.no_grad()
def _compare(vit: ViT, source: nn.Module) -> None:
    """Refuse a conversion whose logits differ from the source's."""
    config, positions = vit.config, vit.positions
    shape = (2, config.channels, config.image_size, config.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = images.to(positions)
    expected, got = source(images), vit(images)
    largest = float(expected.abs().max())
    share = {torch.float64: 1e-9, torch.float32: 1e-4}.get(positions.dtype, 1e-1)
    error = float((expected - got).abs().max())
    if largest == largest and error > share * max(1.0, largest):
        raise CircuitError(
            f"the converted model's logits differ from the source's by {error:.2g} (largest logit "
            f"{largest:.2g}). Its forward pass is not that of timm's plain VisionTransformer."
        )
