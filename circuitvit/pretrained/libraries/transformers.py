"""Reads ViT image classifiers of transformers, without importing transformers.

ViT (Dosovitskiy et al. 2021), MSN (Assran et al. 2022), DeiT (Touvron et al. 2021), DINOv2 (Oquab
et al. 2024) with registers (Darcet et al. 2024), I-JEPA (Assran et al. 2023), SigLIP (Zhai et al.
2023). Both layouts of keys are read: that of version 5 and the earlier one, which it still saves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

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
    path_to_linear,
    tensors_by_role,
)

POOLINGS: dict[str, Pooling] = {
    "ViTForImageClassification": "class",
    "ViTMSNForImageClassification": "class",
    "DeiTForImageClassification": "class",
    "DeiTForImageClassificationWithTeacher": "class_distillation",
    "Dinov2ForImageClassification": "class_mean",
    "Dinov2WithRegistersForImageClassification": "class_mean",
    "IJepaForImageClassification": "mean",
    "SiglipForImageClassification": "mean",
}
"""What the classifier of each class that can be read reads."""

REASONS = {
    "BeitForImageClassification": "relative positions are added to its attention scores",
    "Data2VecVisionForImageClassification": "relative positions are added to its attention scores",
    "DINOv3ViTModel": "rotary positions turn its queries and keys",
    "DINOv3ViTForImageClassification": "rotary positions turn its queries and keys",
    "SwinForImageClassification": "its attention is windowed, with relative positions",
    "Swinv2ForImageClassification": "its attention is windowed, with relative positions",
    "ViTHybridForImageClassification": "its patches come from a CNN",
    "CLIPForImageClassification": "its classifier reads the stream without a final LayerNorm",
    "Siglip2ForImageClassification": "it packs patches of images of several sizes",
    "MetaClip2ForImageClassification": "its classifier reads the stream without a final LayerNorm",
}
"""Why models of transformers that look like ViTs can't be represented."""

RENAMES = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|ijepa|vision_model)\.", ""),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch."),
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.(distillation_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "positions"),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(layernorm_before|norm1|layer_norm1)\.", ".ln1."),
    (r"\.(layernorm_after|norm2|layer_norm2)\.", ".ln2."),
    (r"\.(attention|self_attn)\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attention.\3."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attention.out."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".scale\1"),
    (r"^(post_)?layernorm\.", "final_norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_distillation."),
)
UNUSED = r"(^|\.)mask_token$|^vit\.pooler\.|^deit\.pooler\.|^vision_model\.head\.|position_ids$"
"""Keys that take no part in classification."""

GUESS = (
    "how this model's images were normalised is not known: it has class names, but no image "
    "processor is beside it; mean and std 0.5 are taken. Give "
    "preprocessing=cv.Preprocessing(mean=..., std=..., class_names=...) to load_vit."
)


def knows(module: nn.Module) -> bool:
    """Whether a module is one of the image classifiers that can be read."""
    return _kind(module) is not None


def _kind(module: nn.Module) -> str | None:
    for cls in type(module).__mro__:
        if cls.__module__.startswith("transformers.") and cls.__name__ in POOLINGS:
            return cls.__name__
    return None


def problems(source: Any) -> list[str]:
    """Everything about the model that a `ViT` has not."""
    config = vision_config(source)
    found = list(eps_problems(source))
    for what in ("image_size", "patch_size"):
        sides = _sides(getattr(config, what, 0))
        if sides[0] != sides[1]:
            found.append(f"its {what} is {sides}, not square")
    size, patch = _sides(config.image_size)[0], _sides(config.patch_size)[0]
    if size % patch:
        found.append(f"patches of {patch} pixels don't fill images of {size}")
    for name in _heads(source):
        head = getattr(source, name, None)
        if isinstance(head, nn.Identity):
            found.append(f"there is no {name} (num_labels=0): it gives features, not classes")
        elif path_to_linear(head) is None:
            found.append(f"its {name} is a {type(head).__name__}, not one linear layer")
    blocks = [list(_block_problems(block, config)) for block in blocks_of(source)]
    return found + in_blocks(blocks)


_NORMS = (
    "layernorm_before", "layernorm_after", "norm1", "norm2", "layer_norm1", "layer_norm2",
)  # fmt: skip


def _block_problems(block: nn.Module, config: Any) -> Iterator[str]:
    kinds = {type(module).__name__ for module in block.modules()}
    for path, module in block.named_children():
        if path in _NORMS and not isinstance(module, nn.LayerNorm):
            yield f"{path} is a {type(module).__name__}, not a LayerNorm"
    if any("SwiGLU" in kind for kind in kinds):
        yield "a SwiGLU MLP"
    elif _activation(block, config) is None:
        yield f"activation {getattr(config, 'hidden_act', None)!r}"


def _activation(block: nn.Module, config: Any) -> Any:
    """By the module that is there, or by the name in the config."""
    found = [activation_of(module) for module in block.modules()]
    named = {
        "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "quick_gelu",
    }  # fmt: skip
    known = [name for name in found if name is not None]
    name = getattr(config, "hidden_act", None)
    return known[0] if known else named.get(name) if isinstance(name, str) else None


def vision_config(source: Any) -> Any:
    """The part of the config that is about images."""
    return getattr(source.config, "vision_config", source.config)


def blocks_of(source: nn.Module) -> list[nn.Module]:
    """The blocks, wherever this version keeps them."""
    lists = [module for module in source.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _heads(source: nn.Module) -> tuple[str, ...]:
    if _kind(source) == "DeiTForImageClassificationWithTeacher":
        return ("cls_classifier", "distillation_classifier")
    return ("classifier",)


def _head_count(block: nn.Module, config: Any) -> int:
    """As the block has it, since heads can be pruned."""
    for module in block.modules():
        for name in ("num_attention_heads", "num_heads"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return config.num_attention_heads


def resize(source: Any, image_size: int) -> None:
    """Resample the positions, in place, with the model's own interpolation."""
    embeddings = next(m for m in source.modules() if hasattr(m, "interpolate_pos_encoding"))
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:
        table = embeddings.position_embedding.weight[None]
    config = vision_config(source)
    old = (_sides(config.image_size)[0] // _sides(config.patch_size)[0]) ** 2
    new = (image_size // _sides(config.patch_size)[0]) ** 2
    tokens = table.new_zeros(1, new + table.shape[1] - old, table.shape[2])
    rows = embeddings.interpolate_pos_encoding(tokens, image_size, image_size)
    source.circuitvit_positions = (image_size, rows.detach().clone())


def read(source: Any) -> LibraryReading:
    """The model in our words."""
    kind, config = _kind(source), vision_config(source)
    assert kind is not None
    image_size, rows = getattr(source, "circuitvit_positions", (_sides(config.image_size)[0], None))
    parts, unused = tensors_by_role(source, RENAMES, unused=UNUSED)
    if rows is not None:
        parts["positions"] = rows
    blocks = blocks_of(source)
    folded = []
    if "distillation_token" in parts:
        folded.append("the distillation token is the first register")
    processor = processor_of(home_of(source))
    folded += processor.notes
    guessed = processor.guessed
    if processor.seen is None and class_names(source.config) is not None:
        guessed = tuple(f"{text} Until then mean and std 0.5 are taken." for text in guessed) or (
            GUESS,
        )
        why = "its image processor is not understood" if processor.notes else \
            "no image processor is beside it"  # fmt: skip
        folded.append(f"mean and std of images taken as 0.5: {why}")
    return LibraryReading(
        source=f"transformers {type(source).__name__}",
        image_size=image_size,
        heads=tuple(_head_count(block, config) for block in blocks),
        pooling=POOLINGS[kind],
        fc_norm=False,
        layer_norm_eps=all_eps(source)[0],
        activation=_activation(blocks[0], config) if blocks else "gelu",
        parts=parts,
        logits=lambda images: _logits(source, images, resampled=rows is not None),
        folded=tuple(folded),
        guessed=guessed,
        unused=unused,
    )


def _logits(source: Any, images: Tensor, *, resampled: bool) -> Tensor:
    """The model's own, with an attention that computes in its dtype."""
    source.config._attn_implementation = "sdpa"
    vision_config(source)._attn_implementation = "sdpa"
    kind = _kind(source) or ""
    always = kind.startswith("Dinov2")  # resamples whenever the size is another
    options = {"interpolate_pos_encoding": True} if resampled and not always else {}
    return source(images, return_dict=True, **options).logits


def preprocessing_of(source: Any) -> Preprocessing | None:
    """From the image processor beside the model, and class names from its config.

    A module remembers where it came from; a folder, or the hub's cache, may hold the processor.
    Beside class names without a processor, mean and std 0.5 are a guess: transformers takes them
    for most kinds, but not for Dinov2, and training may have taken others.
    """
    names = class_names(source.config)
    found = processor_of(home_of(source)).seen
    if found is None:
        return None if names is None else Preprocessing(class_names=names)
    return replace(found, class_names=names)


def home_of(source: Any) -> str:
    """The folder or repository that a module came from, or nothing."""
    return str(getattr(source.config, "_name_or_path", "") or "")


def class_names(config: Any) -> tuple[str, ...] | None:
    """The class names of `id2label`; None if it only counts them."""
    labels = getattr(config, "id2label", None)
    if not isinstance(labels, Mapping) or not labels:
        return None
    names = [labels[key] for key in sorted(labels, key=int)]
    counted = all(str(name) == f"LABEL_{index}" for index, name in enumerate(names))
    return None if counted else distinct(names)


def reason_against(module: nn.Module) -> str | None:
    """Why a model of transformers that is not in `POOLINGS` is refused, if that is known."""
    name = type(module).__name__
    if name not in REASONS and "ImageClassification" not in name:
        return "it has no classifier; load it with the …ForImageClassification class of its kind"
    return REASONS.get(name)
