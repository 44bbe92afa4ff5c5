"""Small models of timm, transformers and torchvision, every parameter drawn at random.

With a library's initial weights many mistakes stay hidden (biases and tokens are 0, LayerScale and
LayerNorms 1), and so they do where logits hardly vary.
"""

from functools import partial

import torch
from torch import nn

SIDE, PATCH, WIDTH, HEADS, CLASSES = 16, 4, 24, 3, 5


def images(channels=3, side=SIDE, count=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, side, side, generator=generator, dtype=dtype)


def drawn(module, seed=0):
    """The module in float64 and eval mode with random parameters, and logits that vary."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    norms = {id(m.weight) for m in module.modules() if isinstance(m, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * values if id(parameter) in norms else 0.3 * values)
        for name, parameter in module.named_parameters():
            if name.startswith(("head", "classifier", "cls_classifier", "distillation_cl")):
                parameter.mul_(4)
    return module


def logits_of(module, x):
    found = module(x)
    return getattr(found, "logits", found)


def a_timm(*, kind="VisionTransformer", head=None, **changes):
    import timm

    shape = dict(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=HEADS)
    home = timm.models.deit if "Distilled" in kind else timm.models
    norm = changes.pop("eps", None)
    if norm is not None:
        changes["norm_layer"] = partial(nn.LayerNorm, eps=norm)
    module = getattr(home, kind)(**{**shape, "num_classes": CLASSES, **changes})
    if head is not None:
        module.head = head
    return drawn(module)


def a_torchvision(*, heads=None, **changes):
    from torchvision.models import VisionTransformer

    shape = dict(image_size=SIDE, patch_size=PATCH, num_layers=2, num_heads=HEADS)
    shape |= dict(hidden_dim=WIDTH, mlp_dim=30, num_classes=CLASSES)
    module = VisionTransformer(**{**shape, **changes})
    if heads is not None:
        module.heads = heads
    return drawn(module)


def a_transformers(kind, *, teacher=False, classifier=None, eager=False, **changes):
    import transformers

    shape = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS)
    shape |= dict(image_size=SIDE, patch_size=PATCH)
    shape |= {} if kind.startswith("Dinov2") else dict(intermediate_size=30)
    if kind == "Siglip":
        inner = {**shape, **changes}
        config = transformers.SiglipConfig(vision_config=inner, num_labels=CLASSES)
    else:
        config = getattr(transformers, f"{kind}Config")(
            **{**shape, "num_labels": CLASSES, **changes}
        )
    if eager:
        config._attn_implementation = "eager"
    name = f"{kind}ForImageClassification{'WithTeacher' if teacher else ''}"
    module = getattr(transformers, name)(config)
    if classifier is not None:
        module.classifier = classifier
    return drawn(module)


def a_sequential_head(width=WIDTH):
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(width, CLASSES))


ALIKE_TIMM = {
    "plain": {},
    "LayerScale": dict(init_values=0.1),
    "registers": dict(reg_tokens=2),
    "DeiT III: positions for patches only, LayerScale": dict(no_embed_class=True, init_values=0.1),
    "reg4_dinov2: registers, no positions for them": dict(
        reg_tokens=4, no_embed_class=True, init_values=0.1
    ),
    "no positions": dict(pos_embed="none"),
    "q/k norm": dict(qk_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "q/k norm, no qkv bias": dict(qk_norm=True, qkv_bias=False),
    "no projection bias": dict(proj_bias=False),
    "tanh GELU": dict(act_layer="gelu_tanh"),
    "QuickGELU": dict(act_layer="quick_gelu"),
    "CLIP: pre-norm, QuickGELU, ε 1e-5": dict(pre_norm=True, act_layer="quick_gelu", eps=1e-5),
    "pre-norm, registers": dict(pre_norm=True, reg_tokens=2),
    "wide MLP, one channel": dict(mlp_ratio=3, in_chans=1),
    "dynamic image size": dict(dynamic_img_size=True),
    "dropouts": dict(drop_rate=0.5, drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5),
    "patch dropout": dict(patch_drop_rate=0.5),
    "mean, fc_norm": dict(global_pool="avg"),
    "mean, norm before": dict(global_pool="avg", fc_norm=False),
    "mean, no class token": dict(global_pool="avg", class_token=False),
    "mean, norm before, no class token, registers (so150m)": dict(
        global_pool="avg", class_token=False, fc_norm=False, reg_tokens=4, no_embed_class=True
    ),
    "mean, registers": dict(global_pool="avg", reg_tokens=2),
    "mean of all tokens": dict(global_pool="avg", pool_include_prefix=True),
    "mean of all tokens, norm before": dict(
        global_pool="avg", pool_include_prefix=True, fc_norm=False, reg_tokens=1
    ),
    "mean of all tokens, where all are patches": dict(
        global_pool="avg", pool_include_prefix=True, class_token=False
    ),
    "class token, fc_norm": dict(fc_norm=True),
    "distilled DeiT": dict(kind="VisionTransformerDistilled"),
    "distilled, LayerScale, pre-norm": dict(
        kind="VisionTransformerDistilled", init_values=0.1, pre_norm=True
    ),
    "a new head behind a dropout": dict(head=a_sequential_head()),
    "ε 1e-3, one block": dict(eps=1e-3, depth=1),
}
ALIKE_TRANSFORMERS = {
    "ViT": dict(kind="ViT"),
    "ViT, no qkv bias": dict(kind="ViT", qkv_bias=False),
    "ViT, gelu_new": dict(kind="ViT", hidden_act="gelu_new"),
    "ViT, tanh GELU": dict(kind="ViT", hidden_act="gelu_pytorch_tanh"),
    "ViT, QuickGELU": dict(kind="ViT", hidden_act="quick_gelu"),
    "ViT, ε 1e-3, one channel": dict(kind="ViT", layer_norm_eps=1e-3, num_channels=1),
    "ViT, dropouts": dict(kind="ViT", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5),
    "ViT, eager attention": dict(kind="ViT", eager=True),
    "ViT, a new head behind a dropout": dict(kind="ViT", classifier=a_sequential_head()),
    "ViT MSN": dict(kind="ViTMSN"),
    "DeiT": dict(kind="DeiT"),
    "DeiT with teacher": dict(kind="DeiT", teacher=True),
    "Dinov2": dict(kind="Dinov2"),
    "Dinov2, no qkv bias, no mask token": dict(kind="Dinov2", qkv_bias=False, use_mask_token=False),
    "Dinov2 with registers": dict(kind="Dinov2WithRegisters", num_register_tokens=3),
    "I-JEPA": dict(kind="IJepa"),
    "SigLIP": dict(kind="Siglip"),
}
ALIKE_TORCHVISION = {
    "plain": {},
    "patches of 8 pixels, ε 1e-3": dict(patch_size=8, norm_layer=partial(nn.LayerNorm, eps=1e-3)),
    "dropouts": dict(dropout=0.5, attention_dropout=0.5),
    "heads replaced by a linear layer": dict(heads=nn.Linear(WIDTH, CLASSES)),
    "heads replaced, behind a dropout": dict(heads=a_sequential_head()),
}
MAKERS = {"timm": a_timm, "transformers": a_transformers, "torchvision": a_torchvision}
ALIKE = {
    f"{library}: {name}": (library, options)
    for library, table in (
        ("timm", ALIKE_TIMM),
        ("transformers", ALIKE_TRANSFORMERS),
        ("torchvision", ALIKE_TORCHVISION),
    )
    for name, options in table.items()
}


def foreign(name):
    """A model by its name in `ALIKE`."""
    library, options = ALIKE[name]
    return MAKERS[library](**options)
