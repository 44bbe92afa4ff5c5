"""A `ViT` as an image classifier of transformers, where the shape allows it."""

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
from circuitvit.models.vit import PARTS, ViT
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.processors import RESAMPLE
from circuitvit.pretrained.libraries.reading import imported, renamed
from circuitvit.pretrained.libraries.transformers import RENAMES
from circuitvit.torch_modes import in_default_modes

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


@in_default_modes
def to_transformers(vit: ViT) -> nn.Module:
    """An image classifier of transformers in eval mode that computes the same, with its own copy.

    It is, by pooling and tokens, a ViT, DeiT, DeiT with teacher, Dinov2, Dinov2 with registers or
    I-JEPA `…ForImageClassification`. Class names go along as `config.id2label`; the image processor
    is a file beside it, which `circuitvit.export` writes. Its logits were compared: 1e-6 of the
    largest in single precision. Class names that aren't one for each class are left out, with a
    warning.

    Raises:
        CircuitError: transformers has no model of this shape; every reason is named.
    """
    vit = exportable_vit(vit)
    family = _family(vit.config)
    refuse_export(_problems(vit.config, family), "transformers")
    assert family is not None
    library = imported("transformers")
    settings = getattr(library, f"{family}Config")(**_options(vit, family))
    named = f"{family}ForImageClassification"
    teacher = "WithTeacher" if vit.config.pooling == "class_distillation" else ""
    with torch.random.fork_rng(devices=[]):
        module = getattr(library, named + teacher)(settings)
    module.load_state_dict(_state(vit, module), assign=True)
    module.eval().requires_grad_(True)
    module.config.architectures = [named + teacher]
    check_same(vit, module, lambda m, images: m(images).logits, source=f"transformers {named}")
    return module


def _family(config: ViTConfig) -> str | None:
    """The family of classes whose head reads what this one's does."""
    tokens = (config.class_token, config.register_tokens)
    if config.pooling == "class_mean":
        return "Dinov2WithRegisters" if config.register_tokens else "Dinov2"
    if config.pooling in ("mean", "mean_all") and tokens == (False, 0):
        return "IJepa"
    if config.pooling in ("class", "class_distillation") and tokens == (True, 1):
        return "DeiT"
    return "ViT" if config.pooling == "class" and tokens == (True, 0) else None


def _problems(config: ViTConfig, family: str | None) -> list[str]:
    found = list(shape_problems(config, square_heads=False))
    if family is None:
        found.append(
            f"pooling={config.pooling!r} with class_token={config.class_token} and "
            f"{config.register_tokens} register tokens"
        )
    ratios = {width % config.width for width in config.mlp_width}
    reasons = {
        f"{family}'s MLPs are a whole multiple of the width {config.width}, these "
        f"{config.mlp_width[:1]}": str(family).startswith("Dinov2") and ratios != {0},
        "a LayerNorm of queries and keys (qk_norm)": config.qk_norm,
        "a LayerNorm after the embedding (embed_norm)": config.embed_norm,
        "the final LayerNorm after the mean of tokens (fc_norm)": config.fc_norm,
    }
    return found + [text for text, is_so in reasons.items() if is_so]


def _options(vit: ViT, family: str) -> dict[str, Any]:
    config = vit.config
    options: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads[0],
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "num_labels": config.classes,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if config.heads[0] * config.head_width[0] != config.width:
        options["head_dim"] = config.head_width[0]
    if family.startswith("Dinov2"):
        options |= {"mlp_ratio": config.mlp_width[0] // config.width, "layerscale_value": 1.0}
        if config.register_tokens:
            options["num_register_tokens"] = config.register_tokens
    else:
        options["intermediate_size"] = config.mlp_width[0]
    seen = vit.fitting_preprocessing()
    names = None if seen is None else seen.class_names
    if names is not None:
        options["id2label"] = dict(enumerate(names))
        options["label2id"] = {name: index for index, name in enumerate(names)}
    return options


def _state(vit: ViT, module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict of our weights, whatever layout its version has."""
    config, old = vit.config, with_zero_biases(vit.state_dict(), vit.config)
    roles = dict(old)
    _spread_tokens(roles, config)
    for block in range(config.depth):
        at = f"blocks.{block}."
        for kind in ("weight", "bias"):
            if f"{at}attention.qkv.{kind}" in old:
                rows = old[f"{at}attention.qkv.{kind}"].chunk(3)
                for part, piece in zip(PARTS, rows, strict=True):
                    roles[f"{at}attention.{part}.{kind}"] = piece.contiguous()
        roles[f"{at}attention.out.bias"] = old[f"{at}output_bias"]
        for number in (1, 2):
            roles[f"{at}scale{number}"] = old["positions"].new_ones(config.width)
    if config.pooling == "class_distillation":
        roles["head.weight"], roles["head_distillation.weight"] = split_heads(old)
        roles["head_distillation.bias"] = old["head.bias"].clone()
    own = module.state_dict()
    state = {}
    for name, role in renamed(own, RENAMES).items():
        given = roles[role] if role in roles else torch.zeros_like(own[name]).to(old["positions"])
        state[name] = given.reshape(own[name].shape)
    return state


def _spread_tokens(roles: dict[str, Tensor], config: ViTConfig) -> None:
    """Dinov2 gives registers no positions, so these join the tokens; DeiT's one is another."""
    if config.pooling == "class_mean" and config.register_tokens:
        first = int(config.class_token)
        rows, registers = roles["positions"], slice(first, config.prefix_tokens)
        roles["register_tokens"] = roles["register_tokens"] + rows[registers]
        roles["positions"] = torch.cat([rows[:first], rows[config.prefix_tokens :]])
    elif config.register_tokens:
        roles["distillation_token"] = roles["register_tokens"]


def processor_dict(vit: ViT) -> dict[str, Any] | None:
    """The content of `preprocessor_config.json`; None if the model's preprocessing is unknown."""
    seen, side = vit.preprocessing, vit.config.image_size
    if seen is None:
        return None
    numbers = {name: number for number, name in RESAMPLE.items()}
    before = seen.resized_side(side)
    squash = seen.resize == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if squash else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": before, "width": before} if squash else {"shortest_edge": before},
        "resample": numbers[seen.interpolation],
        "do_center_crop": before != side or not squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _each(seen, "mean", vit.config.channels),
        "image_std": _each(seen, "std", vit.config.channels),
        "do_convert_rgb": vit.config.channels == 3,
    }


def _each(seen: Preprocessing, name: str, channels: int) -> list[float]:
    values = getattr(seen, name)
    return list(values * channels if len(values) == 1 else values)
