"""Parameters and multiply-accumulates.

MACs of a ViT are counted from its shape, attention products included; LayerNorms, activations,
sums and softmax are left out, as torch's counter does. They equal half of what
`torch.utils.flop_counter` counts under the math attention kernel (fused ones count as zero).
"""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from circuitvit.config import ViTConfig
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import evaluating


def parameters(model: nn.Module) -> int:
    """Number of parameters, constants of removed units included."""
    told = getattr(model, "parameter_count", None)  # an ONNX model holds none itself
    return (
        told
        if isinstance(told, int)
        else sum(parameter.numel() for parameter in model.parameters())
    )


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image of shape [channel height width]."""
    model = uncompiled(model)
    told = getattr(model, "mac_count", None)
    if isinstance(told, int):
        return told
    return vit_macs(model.config) if isinstance(model, ViT) else counted_macs(model, image_shape)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; any other model as it is."""
    return getattr(model, "_orig_mod", model)


def vit_macs(config: ViTConfig) -> int:
    """Multiply-accumulates of a ViT of this shape for one image."""
    tokens, width = config.tokens, config.width
    total = config.patches * width * config.channels * config.patch_size**2
    for heads, head_width, neurons in zip(
        config.heads, config.head_width, config.mlp_width, strict=True
    ):
        inner = heads * head_width
        total += 4 * tokens * width * inner + 2 * tokens * tokens * inner
        total += 2 * tokens * width * neurons
    return total + config.pooled * width * config.classes


def vit_parameters(config: ViTConfig) -> int:
    """Number of parameters of a ViT of this shape, constants of removed units included."""
    width, constant = config.width, config.tokens * config.width
    total = config.channels * config.patch_size**2 * width + width + constant
    total += (config.class_token + config.register_tokens) * width
    for block in range(config.depth):
        head_width, neurons = config.head_width[block], config.mlp_width[block]
        inner = config.heads[block] * head_width
        if inner:
            total += 2 * width + 4 * inner * width
            total += 3 * inner * config.qkv_bias + 4 * head_width * config.qk_norm
        if neurons:
            total += 2 * width + (2 * width + 1) * neurons + width
        total += width * config.output_bias[block]
        total += constant * (config.attention_constant[block] + config.mlp_constant[block])
    norms = 2 * width * (1 + config.embed_norm)
    return total + norms + (config.pooled * width + 1) * config.classes


def counted_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates as torch's counter sees them, for any module."""
    parameter = next(model.parameters(), torch.zeros(()))
    images = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(images)
    return counter.get_total_flops() // 2
