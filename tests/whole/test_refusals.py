"""What a ViT can't represent is refused by name, with every reason at once."""

import pytest
import torch
from foreign_models import CLASSES, a_sequential_head, a_transformers
from torch import nn

import circuitvit as cv

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

TIMM = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=CLASSES)
HF = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4)
HF |= dict(intermediate_size=30, num_labels=CLASSES)

REFUSED_TIMM = {
    "global_pool='map'": dict(global_pool="map"),
    "global_pool='max'": dict(global_pool="max"),
    "global_pool='avgmax'": dict(global_pool="avgmax"),
    "global_pool=''": dict(global_pool=""),
    "there is no head .num_classes=0.: it gives features": dict(num_classes=0),
    "every block: scale_attn_norm=True": dict(scale_attn_norm=True),
    "every block: scale_mlp_norm=True": dict(scale_mlp_norm=True),
    "every block: activation ReLU": dict(act_layer="relu"),
    "there is no final norm": dict(final_norm=False),
    "final norm is RmsNorm, .*norm1 is a RmsNorm": dict(norm_layer="rmsnorm"),
    r"images are \(16, 32\) pixels, not square": dict(img_size=(16, 32)),
    r"patches are \(4, 2\)": dict(patch_size=(4, 2)),
    "patches of 4 pixels don't fill images of 18": dict(img_size=18),
    "a norm in the patch embedding": dict(embed_norm_layer="layernorm"),
    "DiffAttention with Mlp": dict(attn_layer="diff"),
}


@pytest.mark.parametrize("reason", REFUSED_TIMM)
def test_options_of_timms_vit_that_a_vit_has_not(reason):
    module = timm.models.VisionTransformer(**{**TIMM, **REFUSED_TIMM[reason]})
    with pytest.raises(cv.CircuitError, match=f"can't be represented: .*{reason}"):
        cv.load_vit(module)


def test_blocks_and_mlps_of_timm_that_a_vit_has_not():
    from timm.layers import SwiGLU
    from timm.models import vision_transformer

    for change, reason in (
        (dict(block_fn=vision_transformer.ResPostBlock), "every block: ResPostBlock is not"),
        (dict(block_fn=vision_transformer.ParallelScalingBlock), "ParallelScalingBlock is not"),
        (dict(block_fn=vision_transformer.ParallelThingsBlock), "ParallelThingsBlock is not"),
        (dict(mlp_layer=SwiGLU), "Attention with SwiGLU"),
    ):
        with pytest.raises(cv.CircuitError, match=reason):
            cv.load_vit(timm.models.VisionTransformer(**TIMM, **change))


def test_parts_that_were_replaced_are_named_with_their_blocks():
    from timm.layers import Attention

    module = timm.models.VisionTransformer(**TIMM)
    module.blocks[1].attn = Attention(24, 3, gated=True)
    module.blocks[0].norm1 = nn.LayerNorm(24, eps=1e-3)
    module.head = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))
    reasons = "its head is a Sequential, not one linear layer; .*different eps .*block 1: gated"
    with pytest.raises(cv.CircuitError, match=reasons):
        cv.load_vit(module)
    module = timm.models.VisionTransformer(**TIMM)
    module.blocks[0].mlp.act = timm.layers.QuickGELU()
    with pytest.raises(cv.CircuitError, match="its blocks have different activations"):
        cv.load_vit(module)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("eva02_tiny_patch14_224", "rotary positions"),
        ("vit_small_patch16_dinov3", "rotary positions"),
        ("beit_base_patch16_224", "relative positions"),
        ("vit_relpos_small_patch16_224", "relative positions"),
        ("swin_tiny_patch4_window7_224", "windowed"),
        ("samvit_base_patch16", "windowed"),
        ("naflexvit_base_patch16_gap", "images of several sizes"),
        ("vit_tiny_r_s16_p8_224", r"come from a HybridEmbed .a CNN."),
        ("vit_giant_patch14_dinov2", "there is no head.*GluMlp"),
        ("resnet18", "What can be read: timm's VisionTransformer and"),
    ],
)
def test_other_models_of_timm(name, reason):
    with torch.device("meta"):
        module = timm.create_model(name)
    with pytest.raises(cv.CircuitError, match=reason):
        cv.load_vit(module)


REFUSED_TRANSFORMERS = {
    "no classifier; load it with the …ForImageClassification": ("ViTModel", "ViTConfig", {}),
    "CLIPVisionModel: it has no classifier": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "DINOv3ViTModel: rotary positions": ("DINOv3ViTModel", "DINOv3ViTConfig", {}),
    "relative positions": ("BeitForImageClassification", "BeitConfig", {}),
    "every block: activation 'relu'": (
        "ViTForImageClassification", "ViTConfig", {"hidden_act": "relu"},
    ),
    r"its image_size is \(16, 32\), not square": (
        "ViTForImageClassification", "ViTConfig", {"image_size": [16, 32]},
    ),
    "patches of 4 pixels don't fill images of 18": (
        "ViTForImageClassification", "ViTConfig", {"image_size": 18},
    ),
    "there is no classifier .num_labels=0.": (
        "ViTForImageClassification", "ViTConfig", {"num_labels": 0},
    ),
    "every block: a SwiGLU MLP": (
        "Dinov2ForImageClassification", "Dinov2Config", {"use_swiglu_ffn": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED_TRANSFORMERS)
def test_models_of_transformers_that_a_vit_is_not(reason):
    import transformers

    model, config, changes = REFUSED_TRANSFORMERS[reason]
    shape = {k: v for k, v in HF.items() if not (k == "intermediate_size" and "Dinov2" in model)}
    module = getattr(transformers, model)(getattr(transformers, config)(**{**shape, **changes}))
    with pytest.raises(cv.CircuitError, match=reason):
        cv.load_vit(module)


def test_clip_with_a_classifier_has_no_final_norm_before_it():
    import transformers

    config = transformers.CLIPConfig(vision_config=HF, num_labels=CLASSES)
    with pytest.raises(cv.CircuitError, match="without a final LayerNorm"):
        cv.load_vit(transformers.CLIPForImageClassification(config))


def test_models_of_torchvision_that_a_vit_is_not():
    from torchvision.models import SwinTransformer, VisionTransformer
    from torchvision.models.vision_transformer import ConvStemConfig

    shape = (16, 4, 2, 3, 24, 30)
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
    changed = VisionTransformer(*shape)
    changed.encoder.layers[1].mlp[1] = nn.ReLU()
    changed.encoder.ln = nn.Identity()
    changed.heads = nn.Sequential(*a_sequential_head().children(), nn.Linear(5, 5))
    for module, reason in (
        (VisionTransformer(*shape, representation_size=7), "'Linear', 'Tanh', 'Linear'"),
        (VisionTransformer(*shape, conv_stem_configs=stem), "Sequential .conv stem."),
        (changed, "final norm is a Identity.*not one linear layer.*block 1: activation .'ReLU'"),
        (SwinTransformer([4, 4], 12, [1, 1], [2, 2], [2, 2]), "SwinTransformer: .*windowed"),
    ):
        with pytest.raises(cv.CircuitError, match=reason):
            cv.load_vit(module)


def an_impostor(cls):
    """A class of the same name whose forward pass is another."""

    class Other(cls):
        def forward(self, x, *args, **options):
            found = super().forward(x, *args, **options)
            return (2 * found[0], *found[1:]) if isinstance(found, tuple) else 2 * found

    Other.__name__ = cls.__name__
    return Other


@torch.no_grad()
def test_a_part_that_computes_otherwise_is_found_where_logits_hardly_show_it():
    from torchvision.models import VisionTransformer

    timms = timm.models.VisionTransformer(**TIMM, init_values=1e-7)
    theirs = a_transformers("ViT").float()
    theirs.classifier.weight.zero_()
    vision = VisionTransformer(16, 4, 2, 3, 24, 30, num_classes=CLASSES)  # its head is zeros
    for module, block, parts in (
        (timms, timms.blocks[1], ("attn", "mlp", "norm1")),
        (theirs, theirs.vit.layers[1], ("attention", "mlp", "layernorm_after")),
        (vision, vision.encoder.layers[1], ("self_attention", "mlp", "ln_1")),
    ):
        cv.load_vit(module)
        for name in parts:
            part = getattr(block, name)
            own = part.__class__
            part.__class__ = an_impostor(own)
            with pytest.raises(cv.CircuitError, match=r"parameters redrawn|test_refusals\."):
                cv.load_vit(module)
            part.__class__ = own
        cv.load_vit(module)
