"""Random models, shapes and pairs for tests.

With default weights two different models can look equal, so every parameter is drawn, LayerNorms,
biases and constants too, and scaled so that logits vary by more than 1 over images.
"""

import os
from itertools import cycle

import torch

import circuitvit as cv

ODD_ADDRESSES = os.environ.get("CIRCUITVIT_ODD_ADDRESSES") == "1"
"""Random weights and images lie at addresses that are no multiple of 64 bytes, each at another one,
so that matrix libraries take paths that they take on other processors."""
_OFFSETS = cycle([8, 24, 56, 40])  # bytes

TINY = {"image_size": 4, "patch_size": 2, "channels": 1, "classes": 4, "width": 8}

SHAPES = {
    "uniform": dict(**TINY, depth=2, heads=2, head_width=4, mlp_width=6),
    "ragged": dict(**TINY, heads=(1, 0, 3), head_width=(4, 4, 3), mlp_width=(5, 7, 0)),
    "mean": dict(**TINY, depth=2, heads=2, head_width=4, mlp_width=6, pooling="mean"),
    "mean, fc_norm, no class token": dict(
        **TINY, depth=2, heads=2, head_width=4, mlp_width=6, pooling="mean", fc_norm=True,
        class_token=False,
    ),
    "mean of all, fc_norm": dict(
        **TINY, depth=2, heads=2, head_width=4, mlp_width=6, pooling="mean_all", fc_norm=True,
        register_tokens=1,
    ),
    "class and mean": dict(
        **TINY, depth=2, heads=2, head_width=4, mlp_width=6, pooling="class_mean",
        register_tokens=1,
    ),
    "class and distillation, embed norm": dict(
        **TINY, depth=2, heads=2, head_width=4, mlp_width=6, pooling="class_distillation",
        register_tokens=2, embed_norm=True,
    ),
    "registers, q/k norm, no qkv bias, tanh": dict(
        **TINY, depth=2, heads=(2, 1), head_width=4, mlp_width=6, register_tokens=2, qk_norm=True,
        qkv_bias=False, activation="gelu_tanh", layer_norm_eps=1e-3,
    ),
    "constants, quick": dict(
        **TINY, heads=(2, 0), head_width=4, mlp_width=(0, 6), attention_constant=(True, True),
        mlp_constant=(True, False), output_bias=(False, True), activation="quick_gelu",
    ),
}  # fmt: skip


def shape(name: str = "uniform", **changes) -> cv.ViTConfig:
    return cv.ViTConfig(**{**SHAPES[name], **changes})


def placed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself; with CIRCUITVIT_ODD_ADDRESSES=1 a copy at an odd address."""
    if not ODD_ADDRESSES:
        return tensor
    offset = next(_OFFSETS) // tensor.element_size()
    room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    return room[offset:].view(tensor.shape).copy_(tensor)


def placed_weights(module):
    """The module itself, its parameters at odd addresses where that is asked for."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = placed(parameter.data)
    return module


_SHARE = {torch.float64: 1e-12, torch.float32: 1e-5}


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two computations of one thing differ by no more than rounding does elsewhere.

    Equality to the bit holds for what is copied, and for one computation on one layout of memory;
    other layouts (a loaded model's, another batch) are added up in another order.
    """
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    largest = max(1.0, float(expected.detach().abs().max()))
    return float((found - expected).detach().abs().max()) <= _SHARE[found.dtype] * largest


def random_vit(config: cv.ViTConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> cv.ViT:
    generator = torch.Generator().manual_seed(seed)
    vit = cv.ViT(config).double()
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = ("ln" in name or "norm" in name) and name.endswith("weight")
            parameter.copy_(1 + 0.3 * values if is_norm else 0.5 * values)
        images = torch.randn(16, *image_shape(config), generator=generator, dtype=torch.float64)
        vit.head.weight.mul_(2.0 / vit(images).std(dim=0).max())
        spread = vit(images).std(dim=0).max()
    assert spread > 1, f"logits hardly vary: {spread}"
    return placed_weights(vit.to(dtype).eval())


def linear_vit():
    """LayerNorms drowned by their ε, uniform attention, GELUs far to the right: all is linear."""
    vit = random_vit(shape(layer_norm_eps=1e12), seed=7)
    with torch.no_grad():
        for block in vit.blocks:
            for norm in (block.ln1, block.ln2):
                norm.weight.mul_(1e6)
            block.attention.qkv.weight[: 2 * 8] = 0
            block.attention.qkv.bias[: 2 * 8] = 0
            block.mlp.fc1.bias.add_(60)
            block.mlp.fc2.bias.sub_(60 * block.mlp.fc2.weight.sum(dim=1))
        vit.final_norm.weight.mul_(1e6)
    return vit


def image_shape(config: cv.ViTConfig) -> tuple[int, int, int]:
    return config.channels, config.image_size, config.image_size


def random_images(vit: cv.ViT | cv.CircuitViT, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    images = torch.randn(count, *image_shape(vit.config), generator=generator, dtype=torch.float64)
    return placed(images.to(next(vit.parameters()).dtype))


def random_pairs(vit: cv.ViT, count: int = 3, seed: int = 0) -> cv.Pairs:
    generator = torch.Generator().manual_seed(2000 + seed)
    labels = torch.randint(vit.config.classes, (count,), generator=generator)
    return cv.Pairs(
        clean=random_images(vit, count, seed),
        corrupt=random_images(vit, count, seed + 500),
        labels=labels,
        corrupt_labels=(labels + 1) % vit.config.classes,
    )


def as_timm(**shape):
    """A timm VisionTransformer with every parameter random."""
    import timm

    return randomised(timm.models.VisionTransformer(**shape).double().eval())


def randomised(module, seed: int = 0):
    """The module itself, every parameter drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm = "norm" in name and name.endswith("weight")
            scale = 1.0 if name == "head.weight" else 0.3
            parameter.copy_(1 + 0.3 * values if is_norm else scale * values)
    return placed_weights(module)
