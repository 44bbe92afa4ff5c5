"""A bare checkpoint file: its library and shape are read from its keys and tensors.

What tensors don't tell is the number of heads, which must be given, and the activation, ε and
pooling, for which each library's usual ones are taken, and said. Where no choice is usual (CLIP's
layout), the architecture is asked for.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitvit.errors import CircuitError
from circuitvit.files.tensor_files import told_in
from circuitvit.models.saved_model import CONFIG_KEY
from circuitvit.models.vit import ViT
from circuitvit.pretrained.checkpoints import Weights, read_checkpoint
from circuitvit.pretrained.fitting import filled_with, replaced_in
from circuitvit.pretrained.libraries.reading import imported
from circuitvit.pretrained.libraries.timm import mlp_ratio
from circuitvit.pretrained.opened import Checkpoint, Opened

Tensors = Mapping[str, Tensor]
_HEAD = re.compile(r"(^|\.)(heads?|fc|classifier|head_\w+|linear_head)\.([\w.]+\.)?weight$")
_MANY = 8
"""A width with more divisors has only those named that give usual widths of heads."""


def from_checkpoint(file: Checkpoint, heads: int | None) -> Opened:
    """The model that a file holds.

    Raises:
        CircuitError: the file can't be read, its layout is unknown or tells too little, the number
            of heads is missing or wrong, or keys are missing.
    """
    weights = read_checkpoint(file.path, file.weights)
    path, tensors = weights.path, weights.tensors
    if CONFIG_KEY in weights.metadata:
        return _ours(weights, heads)
    if "patch_embed.proj.weight" in tensors:
        library, (module, assumed) = "timm", _timm(weights, heads)
    elif "conv_proj.weight" in tensors:
        library, (module, assumed) = "torchvision", _torchvision(weights, heads)
    else:
        raise CircuitError(_unknown_layout(path, tensors))
    guess = (
        f"{path} doesn't tell its {assumed}, which are assumed. To be sure, give the architecture, "
        f"load_vit('{library}:NAME', checkpoint={str(path)!r}), or the module in the name's place."
    )
    assumption = f"assumed, as tensors don't tell: {assumed}"
    return filled_with(Opened(module, str(path), None, (assumption,), (guess,)), weights)


def _ours(weights: Weights, heads: int | None) -> Opened:
    path = weights.path
    if heads is not None:
        raise CircuitError(f"{path} says its heads itself. Leave heads= out.")
    beside = path.parent / "config.json"
    if path.name == "model.safetensors" and beside.is_file():
        return Opened(ViT.from_pretrained(path.parent), str(path))
    with torch.device("meta"):
        vit = ViT.of_shape(_shape(weights))
    return Opened(vit.take_over(weights.tensors, source=str(path)), str(path))


def _shape(weights: Weights) -> Any:
    try:
        return told_in(weights.metadata, CONFIG_KEY)
    except ValueError as cause:
        raise CircuitError(f"{weights.path} has a damaged config ({cause}).") from cause


def _unknown_layout(path: Path, tensors: Tensors) -> str:
    names = sorted(tensors)
    if any("patch_embeddings.projection" in n or "patch_embedding.weight" in n for n in names):
        return (
            f"{path} holds weights of transformers, without their config. Give the folder that "
            "save_pretrained wrote, or the module beside checkpoint=."
        )
    if "patch.weight" in tensors and "positions" in tensors:
        return (
            f"{path} holds a circuitvit.ViT without its config. Save it with "
            "vit.save_pretrained(folder), or give the ViT beside checkpoint=."
        )
    return (
        f"can't tell whose model {path} holds: its keys are {names[:6]}{'…' * (len(names) > 6)}. "
        "Known are the layouts of timm (patch_embed.proj.weight) and torchvision "
        "(conv_proj.weight). Give the architecture, such as 'timm:NAME', beside checkpoint=."
    )


def _timm(weights: Weights, heads: int | None) -> tuple[nn.Module, str]:
    path, t = weights.path, weights.tensors
    patch = t["patch_embed.proj.weight"]
    width, channels, _, side = patch.shape
    _require(weights, "head.weight", "blocks.0.mlp.fc1.weight")
    if "norm_pre.weight" in t:
        raise CircuitError(
            f"{path} has a norm_pre, as CLIP's models have, of which some take QuickGELU and some "
            "GELU, with ε 1e-5 or 1e-6: tensors don't tell. Give the architecture, such as "
            "'timm:vit_base_patch32_clip_224', beside checkpoint=."
        )
    count = _heads(path, heads, width, t.get("blocks.0.attn.q_norm.weight"))
    prefix = _rows(t, "cls_token") + _rows(t, "reg_token")
    image_size, free = _image_size(path, t.get("pos_embed"), prefix + _rows(t, "dist_token"), side)
    after, has_class = "fc_norm.weight" in t, "cls_token" in t
    pool = "avg" if after or not has_class else "token"
    models = imported("timm").models
    options: dict[str, Any] = {
        "img_size": image_size, "patch_size": side, "in_chans": channels,
        "num_classes": len(t["head.weight"]), "embed_dim": width,
        "depth": _depth(t, r"^blocks\.(\d+)"), "num_heads": count,
        "mlp_ratio": mlp_ratio(len(t["blocks.0.mlp.fc1.weight"]), width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in t, "qk_norm": "blocks.0.attn.q_norm.weight" in t,
        "proj_bias": "blocks.0.attn.proj.bias" in t, "class_token": has_class,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in t else None,
        "reg_tokens": _rows(t, "reg_token"), "no_embed_class": free, "global_pool": pool,
        "fc_norm": after, "pos_embed": "learn" if "pos_embed" in t else "none",
    }  # fmt: skip
    distilled = "dist_token" in t
    kind = models.deit.VisionTransformerDistilled if distilled else models.VisionTransformer
    with torch.device("meta"):
        module = kind(**options)
    return module, f"activation, ε and pooling: erf GELU, ε 1e-06, global_pool={pool!r}"


def _torchvision(weights: Weights, heads: int | None) -> tuple[nn.Module, str]:
    path, t = weights.path, weights.tensors
    width, _, _, side = t["conv_proj.weight"].shape
    first = "encoder.layers.encoder_layer_0.mlp."
    fc1 = next((t[n] for n in (f"{first}0.weight", f"{first}linear_1.weight") if n in t), None)
    head = next((t[n] for n in ("heads.head.weight", "heads.weight") if n in t), None)
    if fc1 is None or head is None:
        _require(weights, f"{first}0.weight", "heads.head.weight")
    assert fc1 is not None
    assert head is not None
    count = _heads(path, heads, width, None)
    image_size, _ = _image_size(path, t.get("encoder.pos_embedding"), 1, side)
    home = imported("torchvision").models.vision_transformer
    with torch.device("meta"):
        module = home.VisionTransformer(
            image_size=image_size,
            patch_size=side,
            num_layers=_depth(t, r"encoder_layer_(\d+)"),
            num_heads=count,
            hidden_dim=width,
            mlp_dim=len(fc1),
            num_classes=len(head),
        )
    return module, "activation and ε: erf GELU, ε 1e-06"


def _require(weights: Weights, *names: str) -> None:
    missing = [name for name in names if name not in weights.tensors]
    if not missing:
        return
    heads = [name for name in weights.tensors if _HEAD.search(name)]
    heads += [f"{name} (outside of the prefix)" for name in weights.beside if _HEAD.search(name)]
    found = f" What looks like a head is {', '.join(heads[:4])}." if heads else ""
    raise CircuitError(
        f"{weights.path} has no {' and no '.join(missing)}. A whole classifier with plain MLPs and "
        f"one linear layer as its head is needed; features without a head are not enough.{found}"
        f"{replaced_in(weights.tensors)}"
    )


def _heads(path: Path, given: int | None, width: int, q_norm: Tensor | None) -> int:
    """The number of heads: as given, or by the width of a q/k norm."""
    fits = [n for n in range(1, width + 1) if width % n == 0]
    usual = [n for n in fits if 8 <= width // n <= 128]
    named = fits if len(fits) <= _MANY else usual or fits
    shown = ", ".join(f"{n} (of width {width // n})" for n in named)
    shown = shown if named is fits else f"for example {shown}"
    told = None if q_norm is None else width // len(q_norm)
    if given is None and told is None:
        raise CircuitError(
            f"{path} doesn't tell the number of attention heads. Give heads=; the width is "
            f"{width}, so it may be {shown}. On the command line: circuitvit inspect {path} "
            "--heads N --out FOLDER makes a folder that every command takes."
        )
    count: Any = told if given is None else given
    whole = isinstance(count, int) and not isinstance(count, bool) and count > 0
    if not whole or width % count or told not in (None, count):
        reason = f"its q/k norms say {told}" if told is not None else f"it may be {shown}"
        raise CircuitError(
            f"heads is {given!r}, which doesn't fit the width {width} of {path}: {reason}."
        )
    return count


def _rows(tensors: Tensors, name: str) -> int:
    """Tokens in a table of them [1 token width]."""
    return tensors[name].shape[1] if name in tensors else 0


def _depth(tensors: Tensors, pattern: str) -> int:
    found = [re.search(pattern, name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _image_size(path: Path, positions: Tensor | None, prefix: int, patch: int) -> tuple[int, bool]:
    """The side in pixels, and whether positions leave out the prefix."""
    if positions is None:
        raise CircuitError(
            f"{path} has no positions, so its image size is unknown. Give the architecture, such "
            "as 'timm:NAME', beside checkpoint=."
        )
    rows = positions.shape[1]
    for free in (False, True):
        patches = rows if free else rows - prefix
        side = math.isqrt(max(patches, 0))
        if side and side**2 == patches:
            return side * patch, free and prefix > 0
    raise CircuitError(
        f"{path} has {rows} positions and {prefix} tokens before the patches: no square of "
        "patches. Only square images can be represented."
    )
