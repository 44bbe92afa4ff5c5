"""load_vit gives what timm, transformers and torchvision compute, exactly, or says why not."""

import copy

import pytest
import torch
from foreign_models import (
    ALIKE,
    CLASSES,
    PATCH,
    WIDTH,
    a_timm,
    a_torchvision,
    a_transformers,
    foreign,
    images,
    logits_of,
)
from random_models import agree, random_vit, shape
from torch import nn

import circuitvit as cv
from circuitvit.pretrained import examine

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


def apart(vit, module, x):
    """The largest difference of logits, in units of the largest."""
    expected = logits_of(module, x)
    return float((vit(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ALIKE)
@torch.no_grad()
def test_logits_are_those_of_the_source(name):
    module = foreign(name)
    vit = cv.load_vit(module)
    x = images(vit.config.channels)
    expected = logits_of(module, x)
    assert expected.shape == (4, CLASSES)
    assert expected.std(dim=0).max() > 1
    assert apart(vit, module, x) < 1e-10 or "eager" in name  # which takes softmax in float32
    assert not vit.training
    assert vit.positions.dtype == torch.float64
    module, x = module.float(), x.float()
    assert apart(cv.load_vit(module), module, x) < 1e-5


RESAMPLED = [
    name
    for name in ALIKE
    if any(word in name for word in ("plain", "only", "reg4", "mean, fc", "distilled DeiT", "dynamic"))
    or (name.startswith("transformers: ") and "," not in name)
]  # fmt: skip


@pytest.mark.parametrize("name", RESAMPLED)
@pytest.mark.parametrize("side", [24, 8])
@torch.no_grad()
def test_positions_are_resampled_as_the_library_does(name, side):
    module = foreign(name)
    found = examine(module, image_size=side)
    vit, x = found.vit, images(side=side)
    assert vit.config.image_size == side
    assert f"positions resampled from 16 to {side} pixels" in found.folded
    assert vit.config.patches == (side // PATCH) ** 2
    if name.startswith("timm"):
        module = copy.deepcopy(module)
        module.set_input_size(img_size=(side, side))
    elif name.startswith("torchvision"):
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(side, PATCH, dict(module.state_dict()))
        module = a_torchvision(image_size=side)
        module.load_state_dict(state)
    elif "Dinov2" not in name:
        assert (vit(x) - module(x, interpolate_pos_encoding=True).logits).abs().max() < 1e-9
        return
    assert (vit(x) - logits_of(module, x)).abs().max() < 1e-9


@torch.no_grad()
def test_a_vit_of_ours_is_resampled_as_timm_does():
    module = a_timm(reg_tokens=1)
    ours = cv.load_vit(cv.load_vit(module), image_size=24)
    assert agree(ours.positions, cv.load_vit(module, image_size=24).positions)
    assert ours.fingerprint() == cv.load_vit(ours, image_size=24).fingerprint()


@torch.no_grad()
def test_constants_and_sizes_that_patches_do_not_fill_can_not_be_resampled():
    vit = random_vit(shape("constants, quick"))
    with pytest.raises(cv.CircuitError, match=r"constants \[token width\].*stay 4 pixels"):
        cv.load_vit(vit, image_size=8)
    for model in (random_vit(shape()), a_timm(), a_transformers("ViT"), a_torchvision()):
        for size in (15, 0, -4, True):
            with pytest.raises(cv.CircuitError, match="expected a multiple of the patch size"):
                cv.load_vit(model, image_size=size)


@pytest.mark.parametrize("name", ["timm: LayerScale", "transformers: Dinov2", "torchvision: plain"])
def test_the_callers_module_stays_as_it_is(name):
    module = foreign(name).train()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    vit = cv.load_vit(module, image_size=24)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    assert module.training
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["timm: plain", "transformers: ViT", "torchvision: plain"])
def test_one_bias_that_is_off_makes_the_comparison_fail(name, monkeypatch):
    from circuitvit.pretrained import conversion

    def slightly_wrong(reading):
        config, weights, folded, left = assembled(reading)
        weights["blocks.0.output_bias"][0] += 0.01
        return config, weights, folded, left

    assembled = conversion.assembled
    for module in (foreign(name), foreign(name).float()):
        with monkeypatch.context() as patch:
            patch.setattr(conversion, "assembled", slightly_wrong)
            with pytest.raises(cv.CircuitError, match="logits differ from the source's"):
                cv.load_vit(module)
        cv.load_vit(module)


def test_what_was_folded_and_what_was_not_used_is_told():
    found = examine(a_timm(reg_tokens=4, no_embed_class=True, init_values=0.1))
    assert found.source == "timm VisionTransformer"
    assert "LayerScale into W_O, b_O, W2, b2 (2 blocks)" in found.folded
    assert any("zero positions for 5 prefix tokens" in note for note in found.folded)
    assert found.unused == ()
    assert found.difference < 1e-12
    found = examine(foreign("timm: distilled DeiT"))
    assert any("two heads averaged" in note for note in found.folded)
    assert found.vit.config.pooling == "class_distillation"
    found = examine(foreign("transformers: Dinov2"))
    assert found.unused == ("dinov2.embeddings.mask_token",)
    assert found.vit.config.pooling == "class_mean"
    found = examine(random_vit(shape()))
    assert (found.folded, found.unused, found.difference) == ((), (), None)


def test_half_precision_keeps_its_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        assert cv.load_vit(a_timm(init_values=0.1).to(dtype)).positions.dtype == dtype


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_wrappers_are_looked_through():
    module = a_timm()
    vit = cv.load_vit(module)
    for wrapped in (nn.DataParallel(module), torch.compile(module)):
        assert cv.load_vit(wrapped).fingerprint() == vit.fingerprint()


@torch.no_grad()
def test_transformers_wrapper_for_timm_is_looked_through():
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="test_vit", num_labels=CLASSES)
    module = TimmWrapperForImageClassification(config).eval()
    vit = cv.load_vit(module)
    x = images(side=vit.config.image_size).float()
    assert (vit(x) - module(x).logits).abs().max() < 1e-6


def test_a_model_that_adds_parameters_or_computes_otherwise_is_refused():
    for name in ("timm: plain", "transformers: ViT", "torchvision: plain"):
        module = foreign(name)
        module.extra = nn.Parameter(torch.ones(1).double())
        with pytest.raises(cv.CircuitError, match=r"no one reads here: \['extra'\]"):
            cv.load_vit(module)
    module = a_timm()

    class Doubled(type(module)):
        def forward(self, x):
            return 2 * super().forward(x)

    module.__class__ = Doubled
    with pytest.raises(cv.CircuitError, match="logits differ from the source's"):
        cv.load_vit(module)


@torch.no_grad()
def test_layers_that_were_taken_out_or_have_no_parameters():
    module = a_timm()
    module.norm = nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
    found = examine(module)
    assert apart(found.vit, module, images()) < 1e-10
    assert "neutral values for 2 parameters it has not: final_norm.weight, final_norm.bias" in (
        found.folded
    )
    module.blocks[1].mlp.fc2 = nn.Identity()
    with pytest.raises(cv.CircuitError, match="blocks.1.mlp.fc2 is a Identity, where a plain"):
        cv.load_vit(module)


def test_weights_that_compute_nothing_are_refused():
    module = a_timm()
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    with pytest.raises(cv.CircuitError, match=r"weights hold NaN or infinity \(head.bias\)"):
        cv.load_vit(module)
    module.blocks[0].half()
    with pytest.raises(cv.CircuitError, match=r"several dtypes \(torch.float16, torch.float64\)"):
        cv.load_vit(module)
    with pytest.raises(cv.CircuitError, match="weights are on the meta device"):
        cv.load_vit(a_timm().to("meta"))


def test_a_vit_is_copied_into_eval_mode():
    vit = random_vit(shape()).train()
    vit.preprocessing = cv.Preprocessing(mean=(0.1,))
    loaded = cv.load_vit(vit)
    assert loaded is not vit
    assert not loaded.training
    assert loaded.fingerprint() == vit.fingerprint()
    assert loaded.preprocessing == vit.preprocessing


def test_what_the_caller_says_of_preprocessing_wins_and_must_fit():
    mine = cv.Preprocessing(mean=(0.1, 0.2, 0.3), std=(1, 1, 1), class_names=tuple("abcde"))
    assert cv.load_vit(a_timm(), preprocessing=mine).preprocessing == mine
    assert cv.load_vit(a_timm()).preprocessing is None
    with pytest.raises(
        cv.CircuitError, match="3 and 3 values for 1 channels; .*5 class names for 4"
    ):
        cv.load_vit(random_vit(shape()), preprocessing=mine)


def test_other_things_are_refused_with_what_can_be_read(as_users_call):
    for thing, name in ((nn.Linear(2, 2), r"torch.nn.modules.linear.Linear"), (3, "builtins.int")):
        with pytest.raises(cv.CircuitError, match=f"can't make a ViT of {name}.*What can be read"):
            cv.load_vit(thing)
    with pytest.raises(cv.CircuitError, match="heads= is for a bare checkpoint"):
        cv.load_vit(a_timm(), heads=3)
