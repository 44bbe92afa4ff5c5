import pytest
import torch
from models import as_timm, random_vit, shape
from torch import nn

import circuitvit as cv

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)
VARIANTS = {
    "plain": {},
    "LayerScale": dict(init_values=0.1),
    "registers": dict(reg_tokens=2),
    "registers, positions for patches only": dict(reg_tokens=2, no_embed_class=True),
    "no positions": dict(pos_embed="none"),
    "q/k norm": dict(qk_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "no projection bias": dict(proj_bias=False),
    "tanh GELU": dict(act_layer="gelu_tanh"),
    "QuickGELU": dict(act_layer="quick_gelu"),
    "wide MLP, one channel": dict(mlp_ratio=3, in_chans=1),
    "dynamic image size": dict(dynamic_img_size=True),
    "dropouts": dict(drop_rate=0.5, drop_path_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_timm_model_gives_the_same_logits(name):
    module = as_timm(**SMALL, **VARIANTS[name])
    vit = cv.load_vit(module)
    channels = vit.config.channels
    images = torch.randn(4, channels, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    expected = module(images)
    assert expected.std(dim=0).max() > 1
    assert (vit(images) - expected).abs().max() < 1e-10 * expected.abs().max()
    module, images = module.float(), images.float()
    expected = module(images)
    assert (cv.load_vit(module)(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not vit.training


def test_the_comparison_fails_when_one_bias_is_changed():
    module = as_timm(**SMALL)
    vit = cv.load_vit(module)
    images = torch.randn(4, 3, 16, 16).double()
    with torch.no_grad():
        module.blocks[0].attn.proj.bias[0] += 0.01
    assert (vit(images) - module(images)).abs().max() > 1e-6


def test_the_callers_module_stays_as_it_is():
    module = as_timm(**SMALL, drop_rate=0.5).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    vit = cv.load_vit(module)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


REFUSED = {
    "global_pool='avg'": dict(global_pool="avg"),
    "pre_norm=True": dict(pre_norm=True),
    "no head": dict(num_classes=0),
    "scale_attn_norm=True": dict(scale_attn_norm=True),
    "scale_mlp_norm=True": dict(scale_mlp_norm=True),
    "activation ReLU": dict(act_layer="relu"),
    "not one LayerNorm": dict(final_norm=False),
    "RMSNorm|not a LayerNorm": dict(norm_layer="rmsnorm"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_can_not_be_represented_is_refused_by_name(reason):
    import timm

    module = timm.models.VisionTransformer(**{**SMALL, **REFUSED[reason]})
    with pytest.raises(cv.CircuitError, match=f"can't be represented yet.*({reason})"):
        cv.load_vit(module)


def test_other_blocks_and_mlps_are_refused_by_name():
    from timm.layers import SwiGLU
    from timm.models.vision_transformer import ResPostBlock, VisionTransformer

    for change, reason in (
        (dict(block_fn=ResPostBlock), "block 1: ResPostBlock is not"),
        (dict(mlp_layer=SwiGLU), "Attention with SwiGLU"),
    ):
        with pytest.raises(cv.CircuitError, match=reason):
            cv.load_vit(VisionTransformer(**SMALL, **change))


def test_a_model_that_adds_parameters_is_refused():
    module = as_timm(**SMALL)
    module.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(cv.CircuitError, match=r"no one reads here: \['extra'\]"):
        cv.load_vit(module)


def test_a_model_with_its_own_forward_pass_is_refused():
    module = as_timm(**SMALL)

    class Doubled(type(module)):
        def forward(self, x):
            return 2 * super().forward(x)

    module.__class__ = Doubled
    with pytest.raises(cv.CircuitError, match="logits differ from the source's"):
        cv.load_vit(module)


def test_nan_weights_are_refused():
    module = as_timm(**SMALL)
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    with pytest.raises(cv.CircuitError, match=r"weights hold NaN or infinity \(head.bias\)"):
        cv.load_vit(module)


def test_a_vit_is_copied_into_eval_mode():
    vit = random_vit(shape()).train()
    loaded = cv.load_vit(vit)
    assert loaded is not vit
    assert not loaded.training
    assert loaded.fingerprint() == vit.fingerprint()


def test_other_sources_are_refused_for_now(tmp_path, as_users_call):
    with pytest.raises(cv.CircuitError, match=r"can't make a ViT of torch.nn.*Linear"):
        cv.load_vit(nn.Linear(2, 2))
    for source in (tmp_path / "missing", "timm:vit_tiny_patch16_224", "google/vit-base"):
        with pytest.raises(cv.CircuitError, match="there is no such folder"):
            cv.load_vit(source)
    with pytest.raises(cv.CircuitError, match="can't make a ViT of builtins.int"):
        cv.load_vit(3)
