"""A `ViT` as a model of timm, where the shape allows it."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.export.library_export import (
    check_same,
    exportable_vit,
    refuse_export,
    shape_problems,
    split_heads,
    with_zero_biases,
)
from circuitvit.models.vit import ViT
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.reading import imported
from circuitvit.pretrained.libraries.timm import mlp_ratio
from circuitvit.torch_modes import in_default_modes

ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
"""By ε: names under which timm makes a ViT of any shape. Its config files can't say ε itself."""
DISTILLED = {1e-6: "deit_base_distilled_patch16_224"}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


@in_default_modes
def to_timm(vit: ViT) -> nn.Module:
    """A model of timm in eval mode that computes the same, with its own copy of the weights.

    It is a `VisionTransformer`, or with `pooling="class_distillation"` a
    `VisionTransformerDistilled`, whose two heads then share the one bias. Preprocessing and class
    names go along in its `pretrained_cfg`. Its logits were compared: 1e-6 of the largest in single
    precision. Class names that aren't one for each class are left out, with a warning.

    Raises:
        CircuitError: timm has no model of this shape; every reason is named.
    """
    vit = exportable_vit(vit)
    config = vit.config
    refuse_export(_problems(config), "timm")
    timm = imported("timm")
    distilled = config.pooling == "class_distillation"
    models = timm.models
    kind = models.deit.VisionTransformerDistilled if distilled else models.VisionTransformer
    norm = partial(timm.layers.LayerNorm, eps=config.layer_norm_eps)
    with torch.device("meta"):  # draws nothing, and needs no memory
        module = kind(**options_of(config), num_classes=config.classes, norm_layer=norm)
    module.load_state_dict(_state(vit), assign=True)
    module.requires_grad_(True).eval()
    module.pretrained_cfg = pretrained_cfg_of(vit, vit.fitting_preprocessing())
    module.default_cfg = module.pretrained_cfg
    check_same(vit, module, lambda model, images: model(images), source="timm model")
    return module


def architecture_of(config: ViTConfig) -> str | None:
    """A name that timm registers for models of this kind and ε; None if there is none."""
    named = DISTILLED if config.pooling == "class_distillation" else ARCHITECTURES
    return named.get(config.layer_norm_eps)


def _problems(config: ViTConfig) -> list[str]:
    found = list(shape_problems(config, square_heads=True))
    if config.pooling == "class_mean":
        found.append("its head reads the class token beside the mean of the patches (class_mean)")
    if config.pooling == "class_distillation" and config.register_tokens != 1:
        found.append(
            f"a distilled DeiT has 1 token beside the class token, this {config.register_tokens}"
        )
    return found


def options_of(config: ViTConfig) -> dict[str, Any]:
    """The arguments of timm's class; plain JSON."""
    distilled = config.pooling == "class_distillation"
    takes_mean = config.pooling in ("mean", "mean_all")
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "global_pool": "avg" if takes_mean else "token",
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads[0],
        "mlp_ratio": mlp_ratio(config.mlp_width[0], config.width),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "class_token": config.class_token,
        "reg_tokens": 0 if distilled else config.register_tokens,
        "pre_norm": config.embed_norm,
        "fc_norm": config.fc_norm,
        "pool_include_prefix": config.pooling == "mean_all",
        "act_layer": _ACTIVATIONS[config.activation],
    }


def pretrained_cfg_of(vit: ViT, seen: Preprocessing | None) -> dict[str, Any]:
    """The `pretrained_cfg` for timm's tools: input, normalisation, classes."""
    config = vit.config
    distilled = config.pooling == "class_distillation"
    known: dict[str, Any] = {
        "architecture": architecture_of(config) or ARCHITECTURES[1e-6],
        "num_classes": config.classes,
        "input_size": (config.channels, config.image_size, config.image_size),
        "pool_size": None,
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist") if distilled else "head",
    }
    if seen is not None:
        known["mean"] = _each(seen.mean, config.channels)
        known["std"] = _each(seen.std, config.channels)
        known["interpolation"] = seen.interpolation
        known["crop_pct"] = seen.crop
        known["crop_mode"] = "squash" if seen.resize == "squash" else "center"
        if seen.class_names is not None:
            known["label_names"] = seen.class_names
    return known


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _state(vit: ViT) -> dict[str, Tensor]:
    """Timm's state dict of our weights."""
    config, old = vit.config, with_zero_biases(vit.state_dict(), vit.config)
    new = {"patch_embed.proj.weight": old["patch.weight"], "pos_embed": old["positions"][None]}
    if config.embed_norm:  # timm's patches have no bias then; it joins their positions
        new["pos_embed"][:, config.prefix_tokens :] += old["patch.bias"]
    else:
        new["patch_embed.proj.bias"] = old["patch.bias"]
    if config.class_token:
        new["cls_token"] = old["class_token"].view(1, 1, -1)
    new |= _head_and_registers(old, distilled=config.pooling == "class_distillation")
    moves = {"final_norm.": "fc_norm." if config.fc_norm else "norm.", "embed_norm.": "norm_pre."}
    for name, tensor in old.items():
        for ours, theirs in moves.items():
            if name.startswith(ours):
                new[theirs + name.removeprefix(ours)] = tensor
        if name.startswith("blocks."):
            new[_block_name(name)] = tensor
    return new


def _head_and_registers(old: dict[str, Tensor], *, distilled: bool) -> dict[str, Tensor]:
    new = {}
    if "register_tokens" in old:
        new["dist_token" if distilled else "reg_token"] = old["register_tokens"][None]
    if distilled:
        first, second = split_heads(old)
        new |= {"head.weight": first, "head_dist.weight": second}
        new |= {"head.bias": old["head.bias"], "head_dist.bias": old["head.bias"].clone()}
    else:
        new |= {f"head.{kind}": old[f"head.{kind}"] for kind in ("weight", "bias")}
    return new


def _block_name(name: str) -> str:
    name = name.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.")
    name = name.replace(".output_bias", ".attn.proj.bias").replace(".attention.out.", ".attn.proj.")
    return name.replace(".attention.", ".attn.")
