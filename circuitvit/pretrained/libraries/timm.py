"""Reads timm's VisionTransformer and VisionTransformerDistilled, without importing timm.

Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (DeiT), Touvron et al. 2022 (DeiT III: positions
for patches only), Darcet et al. 2024 (registers), Radford et al. 2021 (CLIP: a LayerNorm before
the first block), Dehghani et al. 2023 (q/k norm).

transformers' wrapper for timm (`TimmWrapper…`) is read here, too: the model inside knows neither
its images nor its classes, as its `pretrained_cfg` is that of the architecture.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from circuitvit.config import Pooling
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.processors import processor_of
from circuitvit.pretrained.libraries.reading import (
    LibraryReading,
    activation_of,
    all_eps,
    distinct,
    eps_problems,
    in_blocks,
    is_from,
    module_kind,
    names_by_index,
    path_to_linear,
    tensors_by_role,
)
from circuitvit.pretrained.libraries.transformers import class_names, home_of

_MODELS = {
    ("timm.models.vision_transformer", "VisionTransformer"),
    ("timm.models.deit", "VisionTransformerDistilled"),
}
_BLOCK = ("timm.models.vision_transformer", "Block")

REASONS = {
    "Eva": "rotary positions turn its queries and keys, and its MLPs may be SwiGLU",
    "Beit": "relative positions are added to its attention scores",
    "VisionTransformerRelPos": "relative positions are added to its attention scores",
    "VisionTransformerSAM": "its attention is windowed, with relative positions",
    "NaFlexVit": "it packs patches of images of several sizes",
    "SwinTransformer": "its attention is windowed, with relative positions",
    "SwinTransformerV2": "its attention is windowed, with relative positions",
    "SwinTransformerV2Cr": "its attention is windowed, with relative positions",
}
"""Why models of timm that look like ViTs can't be represented."""

RENAMES = (
    (r"^patch_embed\.proj\.", "patch."),
    (r"^cls_token$", "class_token"),
    (r"^dist_token$", "distillation_token"),
    (r"^reg_token$", "register_tokens"),
    (r"^pos_embed$", "positions"),
    (r"^norm_pre\.", "embed_norm."),
    (r"^(fc_)?norm\.", "final_norm."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.ls([12])\.gamma$", r".scale\1"),
    (r"^head_dist\.", "head_distillation."),
)


def knows(module: nn.Module) -> bool:
    """Whether a module is timm's VisionTransformer or derived from it."""
    return any((cls.__module__, cls.__name__) in _MODELS for cls in type(module).__mro__)


def problems(source: Any) -> list[str]:
    """Everything about the model that a `ViT` has not."""
    found = [*_embedding_problems(source), *_reading_problems(source), *eps_problems(source)]
    found += in_blocks([_block_problems(block) for block in source.blocks])
    activations = {activation_of(getattr(block.mlp, "act", None)) for block in source.blocks
                   if hasattr(block, "mlp")}  # fmt: skip
    if len(activations) > 1:
        found.append("its blocks have different activations")
    return found


def _embedding_problems(source: Any) -> Iterator[str]:
    embed = source.patch_embed
    projection = getattr(embed, "proj", None)
    if type(embed).__name__ != "PatchEmbed" or not isinstance(projection, nn.Conv2d):
        yield f"its patches come from a {type(embed).__name__} (a CNN), not one convolution"
        return
    size, patch = embed.img_size, projection.kernel_size
    if patch[0] != patch[1] or tuple(projection.stride) != tuple(patch):
        yield f"its patches are {patch} every {tuple(projection.stride)} pixels, not squares apart"
    elif size is None or size[0] != size[1]:
        yield f"its images are {size} pixels, not square; call set_input_size with a square"
    elif size[0] % patch[0]:
        yield f"patches of {patch[0]} pixels don't fill images of {size[0]}; call set_input_size"
    if not isinstance(embed.norm, nn.Identity):
        yield "there is a norm in the patch embedding"
    if not isinstance(source.norm_pre, nn.Identity | nn.LayerNorm):
        yield f"its pre_norm is a {type(source.norm_pre).__name__}, not a LayerNorm"


def _reading_problems(source: Any) -> Iterator[str]:
    if source.global_pool not in ("token", "avg"):
        yield f"global_pool={source.global_pool!r} (only 'token' and 'avg')"
    norms = [n for n in (source.norm, source.fc_norm) if not isinstance(n, nn.Identity)]
    kinds = [type(norm).__name__ for norm in norms]
    if not norms:
        yield "there is no final norm"
    elif len(norms) > 1 or not isinstance(norms[0], nn.LayerNorm):
        yield f"the final norm is {' and '.join(kinds)}, not one LayerNorm"
    for name in ("head", "head_dist"):
        head = getattr(source, name, None)
        if isinstance(head, nn.Identity):
            yield (
                f"there is no {name} (num_classes=0): it gives features, not classes; create it "
                "with num_classes, and load weights that have a head"
            )
        elif head is not None and path_to_linear(head) is None:
            yield f"its {name} is a {type(head).__name__}, not one linear layer"


def _block_problems(block: Any) -> list[str]:
    if (type(block).__module__, type(block).__name__) != _BLOCK:
        return [f"{type(block).__name__} is not timm's pre-norm Block"]
    if not is_from("timm", block.attn, "Attention") or not is_from("timm", block.mlp, "Mlp"):
        return [f"{module_kind(block.attn)} with {module_kind(block.mlp)} (only timm's plain ones)"]
    q_norm, k_norm = block.attn.q_norm, block.attn.k_norm
    scales = [getattr(block, name) for name in ("ls1", "ls2")]
    found = {
        "scale_attn_norm=True": not isinstance(block.attn.norm, nn.Identity),
        "gated attention": getattr(block.attn, "gate", None) is not None,
        "scale_mlp_norm=True": not isinstance(block.mlp.norm, nn.Identity),
        f"norm1 is a {type(block.norm1).__name__}, not a LayerNorm": (
            not isinstance(block.norm1, nn.LayerNorm)
        ),
        f"norm2 is a {type(block.norm2).__name__}, not a LayerNorm": (
            not isinstance(block.norm2, nn.LayerNorm)
        ),
        f"q_norm and k_norm are {type(q_norm).__name__} and {type(k_norm).__name__}": (
            not _both(q_norm, k_norm, nn.Identity) and not _both(q_norm, k_norm, nn.LayerNorm)
        ),
        "its LayerScale is another": any(
            not isinstance(scale, nn.Identity) and not hasattr(scale, "gamma") for scale in scales
        ),
        f"activation {type(block.mlp.act).__name__}": activation_of(block.mlp.act) is None,
    }
    return [text for text, is_so in found.items() if is_so]


def _both(first: object, second: object, kind: type) -> bool:
    return isinstance(first, kind) and isinstance(second, kind)


def resize(source: Any, image_size: int) -> None:
    """Resample the positions, in place, with timm's own method."""
    source.set_input_size(img_size=(image_size, image_size))


def read(source: Any) -> LibraryReading:
    """The model in our words."""
    parts, unused = tensors_by_role(source, RENAMES)
    blocks = list(source.blocks)
    after = not isinstance(source.fc_norm, nn.Identity)
    pooling = _pooling(source)
    folded = odd_fields(config_of(source))
    guessed = (f"{'; '.join(folded)}. {LOOK}",) if folded else ()
    if hasattr(source, "dist_token"):
        folded.append("the distillation token is the first register")
    if after and pooling not in ("mean", "mean_all"):
        folded.append("fc_norm after the token was pooled, which is the same before")
    return LibraryReading(
        source=f"timm {type(source).__name__}",
        image_size=source.patch_embed.img_size[0],
        heads=tuple(block.attn.num_heads for block in blocks),
        pooling=pooling,
        fc_norm=after and pooling in ("mean", "mean_all"),
        layer_norm_eps=all_eps(source)[0],
        activation=(activation_of(blocks[0].mlp.act) if blocks else None) or "gelu",
        parts=parts,
        logits=source,
        folded=tuple(folded),
        guessed=guessed,
        unused=unused,
    )


def _pooling(source: Any) -> Pooling:
    if hasattr(source, "head_dist"):
        return "class_distillation"
    if source.global_pool == "token":
        return "class"
    return "mean_all" if source.pool_include_prefix and source.num_prefix_tokens else "mean"


def preprocessing_of(source: Any) -> Preprocessing | None:
    """The preprocessing of `module.pretrained_cfg`; None for a module that has none."""
    return preprocessing_from(config_of(source))


def config_of(source: Any) -> Mapping[str, Any]:
    """`pretrained_cfg`, or `default_cfg` of older models; empty for a module that has neither."""
    for name in ("pretrained_cfg", "default_cfg"):
        known: Any = getattr(source, name, None)
        known = known.to_dict() if hasattr(known, "to_dict") else known
        if isinstance(known, Mapping) and known:
            return known
    return {}


def preprocessing_from(known: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing by timm for a `pretrained_cfg`; None if it is empty.

    Where it is silent, timm's own defaults count, as in `timm.data.resolve_data_config`.
    """
    if not known:
        return None
    interpolation = str(known.get("interpolation") or "bicubic")
    return Preprocessing(
        mean=_numbers(known.get("mean"), _MEAN),
        std=_numbers(known.get("std"), _STD),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",  # pyright: ignore[reportArgumentType]
        resize="squash" if known.get("crop_mode") == "squash" else "shortest",
        crop=min(1.0, float(known.get("crop_pct") or _CROP)),
        class_names=names_in(known),
    )


def names_in(known: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names of a `pretrained_cfg`; of WordNet's numbers the first of their words."""
    names = names_by_index(_labels(known))
    told = known.get("label_descriptions")
    if not names or not isinstance(told, Mapping):
        return names
    if not all(_SYNSET.match(name) and name in told for name in names):
        return names
    return distinct(str(told[name]).partition(",")[0] for name in names)


def _labels(known: Mapping[str, Any]) -> Any:
    return known.get("label_names") or known.get("labels")  # as older files have it


def odd_fields(known: Mapping[str, Any]) -> list[str]:
    """The fields of a `pretrained_cfg` that a `Preprocessing` can't represent."""
    crop, mode = known.get("crop_pct") or _CROP, known.get("crop_mode") or "center"
    interpolation = known.get("interpolation") or "bicubic"
    found = {
        f"interpolation {interpolation!r} of its pretrained_cfg is not known, bicubic is taken": (
            interpolation not in _INTERPOLATIONS
        ),
        f"crop_mode {mode!r} of its pretrained_cfg is not known, 'center' is taken": (
            mode not in ("center", "squash")
        ),
        "label_names of its pretrained_cfg don't name each class by its index, no names are "
        "taken": bool(_labels(known)) and names_in(known) is None,
        f"crop_pct {crop} of its pretrained_cfg pads pictures, 1.0 is taken": float(crop) > 1,
    }
    return [text for text, is_so in found.items() if is_so]


def _numbers(values: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None or (isinstance(values, list | tuple) and not values):
        return default
    return tuple(values) if isinstance(values, list | tuple) else (float(values),)


LOOK = "Give preprocessing=cv.Preprocessing(...) to load_vit if that is not meant."
_SYNSET = re.compile(r"n\d{8}$")
_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
_MEAN, _STD, _CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875
"""Of timm's `resolve_data_config`."""


def mlp_ratio(neurons: int, width: int) -> float:
    """The `mlp_ratio` of timm: times the width and rounded down, it is the number of neurons."""
    ratio = neurons / width
    return ratio if int(width * ratio) == neurons else (neurons + 0.5) / width


@dataclass(frozen=True)
class Said:
    """The preprocessing and notes of a wrapper.

    Attributes:
        preprocessing: of its images; None where even timm knows nothing of the architecture.
        folded: what was taken, and left out.
        guessed: sentences about what of it is a guess.
    """

    preprocessing: Preprocessing | None
    folded: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def said_by(wrapper: Any) -> Said:
    """The wrapper's preprocessing and class names.

    An image processor beside it comes first, as in transformers; then `pretrained_cfg` of its
    config; then timm's defaults for the architecture, which are a guess.
    """
    names = _names(wrapper.config)
    processor = processor_of(home_of(wrapper))
    if processor.seen is not None:
        seen = replace(processor.seen, class_names=names)
        return Said(seen, processor.notes, processor.guessed)
    known = getattr(wrapper.config, "pretrained_cfg", None)
    if isinstance(known, Mapping) and known:
        seen = preprocessing_from(known)
        odd = tuple(odd_fields({**known, "label_names": None} if names else known))
        guessed = (f"{'; '.join(odd)}. {LOOK}",) if odd else ()
        assert seen is not None
        return Said(replace(seen, class_names=names), (*processor.notes, *odd), guessed)
    seen = preprocessing_of(wrapper.timm_model)
    if seen is None:
        return Said(None, processor.notes)
    note = (
        "how its images were normalised is not known: there is neither a pretrained_cfg nor an "
        "image processor; timm's values for the architecture are taken"
    )
    guessed = (f"{note}. {LOOK}",) if names is not None else ()
    return Said(replace(seen, class_names=names), (*processor.notes, note), guessed)


def _names(config: Any) -> tuple[str, ...] | None:
    """Class names, of the config or, where that only counts, of its `pretrained_cfg`.

    Of `label_names` that are a dict transformers takes the keys for the names.
    """
    labels, known = getattr(config, "label_names", None), getattr(config, "pretrained_cfg", None)
    if isinstance(labels, Mapping) and labels:
        return names_in({"label_names": labels})
    inside = names_in(known) if isinstance(known, Mapping) else None
    return class_names(config) or inside
