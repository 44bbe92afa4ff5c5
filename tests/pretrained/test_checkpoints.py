"""Files of weights: bare, wrapped, of another layout, broken; and beside an architecture."""

import pytest
import torch
from foreign_models import (
    CLASSES,
    HEADS,
    WIDTH,
    a_sequential_head,
    a_timm,
    a_torchvision,
    a_transformers,
    foreign,
    images,
    logits_of,
)
from random_models import agree, random_images, random_vit, shape
from safetensors.torch import save_file
from torch import nn

import circuitvit as cv
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


def same(vit, module, channels=3):
    x = images(channels, side=vit.config.image_size)
    expected = logits_of(module, x)
    return (vit(x) - expected).abs().max() < 1e-10 * expected.abs().max()


BARE = [
    "timm: plain",
    "timm: LayerScale",
    "timm: registers",
    "timm: DeiT III: positions for patches only, LayerScale",
    "timm: reg4_dinov2: registers, no positions for them",
    "timm: q/k norm, no qkv bias",
    "timm: no projection bias",
    "timm: wide MLP, one channel",
    "timm: mean, fc_norm",
    "timm: mean, norm before, no class token, registers (so150m)",
    "timm: distilled DeiT",
    "torchvision: plain",
    "torchvision: dropouts",
]


@pytest.mark.parametrize("name", BARE)
@torch.no_grad()
def test_a_bare_state_dict_gives_the_model_back(name, tmp_path):
    module = foreign(name)
    path = tmp_path / "weights.safetensors"
    save_file(module.state_dict(), path)
    found = examine(path, heads=HEADS)
    assert same(found.vit, module, found.vit.config.channels)
    assert found.vit.positions.dtype == torch.float64
    assert any("assumed" in note for note in found.folded)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}, "ema": state},
        lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "DataParallel", "compiled", "Lightning"],
)
@torch.no_grad()
def test_what_training_scripts_wrap_around_weights_is_taken_off(wrap, tmp_path):
    module = a_timm()
    path = tmp_path / "last.pth"
    torch.save(wrap(module.state_dict()), path)
    assert same(examine(path, heads=HEADS).vit, module)


@torch.no_grad()
def test_weights_go_into_an_architecture_by_name_with_their_classes_and_size(tmp_path):
    import timm

    module = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, depth=1)
    path = tmp_path / "mine.pth"
    state = module.eval().state_dict()
    torch.save({k: v for k, v in state.items() if "blocks" not in k or "blocks.0" in k}, path)
    with pytest.raises(cv.CircuitError, match="blocks.1.attn.proj.bias is missing.*blocks.11"):
        cv.load_vit("timm:vit_tiny_patch16_224", checkpoint=path)
    module = timm.create_model("test_vit", num_classes=7, img_size=64).eval()
    torch.save(module.state_dict(), path)
    found = examine("timm:test_vit", checkpoint=path)
    assert (found.vit.config.classes, found.vit.config.image_size) == (7, 64)
    x = torch.randn(2, 3, 64, 64)
    assert (found.vit(x) - module(x)).abs().max() < 1e-6
    assert found.source == f"timm:test_vit with {path}"
    assert found.vit.preprocessing.class_names is None


@torch.no_grad()
def test_weights_go_into_a_module_that_stays_as_it_was(tmp_path):
    for name in ("timm: plain", "torchvision: plain", "transformers: ViT", "transformers: Dinov2"):
        module, other = foreign(name), foreign(name)
        for parameter in other.parameters():
            parameter.add_(0.1)
        path = tmp_path / "other.pt"
        torch.save(other.state_dict(), path)
        before = cv.load_vit(module).fingerprint()
        assert same(cv.load_vit(module, checkpoint=path), other)
        assert cv.load_vit(module).fingerprint() == before
    vit, other = random_vit(shape()), random_vit(shape(), seed=1)
    torch.save(other.state_dict(), path)
    assert cv.load_vit(vit, checkpoint=path).fingerprint() == other.fingerprint()


@torch.no_grad()
def test_old_key_layouts_of_both_libraries_fit(tmp_path):
    old_names = {
        "vit.layers.": "vit.encoder.layer.", ".attention.q_proj.": ".attention.attention.query.",
        ".attention.k_proj.": ".attention.attention.key.",
        ".attention.v_proj.": ".attention.attention.value.",
        ".attention.o_proj.": ".attention.output.dense.", ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }  # fmt: skip
    module, path = a_transformers("ViT"), tmp_path / "old.bin"
    state = {}
    for name, tensor in module.state_dict().items():
        for new, old in old_names.items():
            name = name.replace(new, old)
        state[name] = tensor + 0
    assert "vit.encoder.layer.1.attention.attention.query.weight" in state
    state["vit.pooler.dense.weight"] = torch.ones(3, 3)
    torch.save(state, path)
    fresh = a_transformers("ViT", num_labels=CLASSES)
    for parameter in fresh.parameters():
        parameter.zero_()
    found = examine(fresh, checkpoint=path)
    assert same(found.vit, module)
    assert found.unused == ("vit.pooler.dense.weight",)
    module = a_torchvision()
    state = {k.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
             for k, v in module.state_dict().items()}  # fmt: skip
    assert any("linear_2" in name for name in state)
    torch.save(state, path)
    assert same(examine(path, heads=HEADS).vit, module)


def test_our_own_file_needs_no_folder(tmp_path):
    vit = random_vit(shape("ragged"))
    vit.preprocessing = cv.Preprocessing(mean=(0.2,))
    vit.save_pretrained(tmp_path)
    loaded = cv.load_vit(tmp_path / "model.safetensors")
    assert loaded.fingerprint() == vit.fingerprint()
    assert loaded.preprocessing == vit.preprocessing
    (tmp_path / "config.json").unlink()
    loaded = cv.load_vit(tmp_path / "model.safetensors")
    x = random_images(vit, 2)
    assert agree(loaded(x), vit(x))
    with pytest.raises(cv.CircuitError, match="says its heads itself"):
        cv.load_vit(tmp_path / "model.safetensors", heads=2)


def test_the_number_of_heads_is_asked_for_and_checked(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(a_timm().state_dict(), path)
    with pytest.raises(cv.CircuitError, match=r"Give heads=; the width is 24, so it may be 1 \(of width 24\), 2 .of width 12., 3"):  # fmt: skip
        cv.load_vit(path)
    for wrong in (5, 0, -3, True):
        with pytest.raises(cv.CircuitError, match="which doesn't fit the width 24"):
            cv.load_vit(path, heads=wrong)
    torch.save(a_timm(embed_dim=12).state_dict(), path)
    with pytest.raises(cv.CircuitError, match=r"2 .of width 6., 3 .of width 4., 4 .*12 .of width"):
        cv.load_vit(path)
    torch.save(a_timm(embed_dim=96).state_dict(), path)
    with pytest.raises(cv.CircuitError, match=r"it may be for example 1 .*, 12 \(of width 8\)\."):
        cv.load_vit(path)
    torch.save(a_timm(qk_norm=True).state_dict(), path)
    assert examine(path).vit.config.heads == (3, 3)
    with pytest.raises(cv.CircuitError, match="q/k norms say 3"):
        cv.load_vit(path, heads=2)


def test_missing_and_surplus_keys_and_wrong_shapes_are_all_named(tmp_path):
    path = tmp_path / "bad.pt"
    state = a_timm(qk_norm=True).state_dict()
    del state["blocks.1.mlp.fc2.bias"], state["cls_token"]
    state["blocks.0.attn.q_norm.weight"] = torch.ones(12)
    state["blocks.0.extra"] = torch.ones(2)
    torch.save(state, path)
    reasons = (
        r"blocks.1.mlp.fc2.bias is missing; cls_token is missing; blocks.0.extra is surplus; "
        r"blocks.0.attn.q_norm.weight has shape \(12,\), expected \(8,\)"
    )
    with pytest.raises(cv.CircuitError, match=reasons):
        cv.load_vit(a_timm(qk_norm=True), checkpoint=path)
    torch.save(state | {"cls_token": torch.ones(1, 1, 24)}, path)
    with pytest.raises(cv.CircuitError, match="bias is missing; blocks.0.extra is surplus"):
        cv.load_vit(path, heads=2)
    state = a_torchvision().state_dict()
    del state["encoder.ln.weight"]
    torch.save(state, path)
    with pytest.raises(cv.CircuitError, match="encoder.ln.weight is missing"):
        cv.load_vit(path, heads=3)


def test_files_that_are_none_say_what_they_are(tmp_path):
    path = tmp_path / "file.pt"

    def refused(match, content=None, name="file.pt", **options):
        target = tmp_path / name
        if content is not None:
            torch.save(content, target)
        with pytest.raises(cv.CircuitError, match=match):
            cv.load_vit(target, **options)

    refused("ends in '.npz'", {"a": torch.ones(1)}, "weights.npz")
    refused("holds no tensors by name, but a list", [1, 2])
    refused("holds no tensors by name, but a dict", {"epoch": 3})
    refused("Only files of tensors are read", nn.Linear(2, 2))
    path.write_bytes(b"broken")
    refused("can't be read as weights")
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    refused("cut short or no safetensors file", name="x.safetensors")
    refused(
        "holds weights of transformers, without their config", a_transformers("ViT").state_dict()
    )
    refused("holds a circuitvit.ViT without its config", random_vit(shape()).state_dict())
    refused("can't tell whose model .*: its keys are .'0.weight'", {"0.weight": torch.ones(2)})
    refused("has no head.weight", a_timm(num_classes=0).state_dict(), heads=3)
    refused("no positions, so its image size", a_timm(pos_embed="none").state_dict(), heads=3)
    refused("no square of patches", a_timm(img_size=(16, 32)).state_dict(), heads=3)
    refused("is a file of weights, and so is", a_timm().state_dict(), checkpoint=path)
    with pytest.raises(cv.CircuitError, match="no checkpoint at .*nowhere.pt: there is no such"):
        cv.load_vit(a_timm(), checkpoint=tmp_path / "nowhere.pt")


def test_a_new_head_behind_a_dropout_fits_a_module_that_has_it(tmp_path):
    module = a_timm(head=a_sequential_head(WIDTH))
    torch.save(module.state_dict(), tmp_path / "new.pt")
    with torch.no_grad():
        assert same(cv.load_vit(module, checkpoint=tmp_path / "new.pt"), module)


def test_a_norm_before_the_mean_does_not_pass_for_one_after_it(tmp_path):
    path = tmp_path / "mean.pt"
    after = a_timm(global_pool="avg").state_dict()
    torch.save(after, path)
    reasons = "norm.bias is missing; norm.weight is missing; fc_norm.bias is surplus"
    for module in (a_timm(), a_timm(global_pool="avg", fc_norm=False)):
        with pytest.raises(cv.CircuitError, match=reasons):
            cv.load_vit(module, checkpoint=path)
    torch.save(a_timm().state_dict(), path)
    with pytest.raises(cv.CircuitError, match="fc_norm.weight is missing; norm.bias is surplus"):
        cv.load_vit(a_timm(global_pool="avg"), checkpoint=path)
    torch.save(a_timm().state_dict() | {k: v for k, v in after.items() if "fc_norm" in k}, path)
    with pytest.raises(cv.CircuitError, match="fc_norm.bias is surplus; fc_norm.weight is surplus"):
        cv.load_vit(a_timm(), checkpoint=path)
    with pytest.raises(cv.CircuitError, match="norm.bias is surplus; norm.weight is surplus"):
        cv.load_vit(path, heads=HEADS)


def test_two_layouts_in_one_file_are_refused(tmp_path):
    state = a_torchvision().state_dict()
    twin = "encoder.layers.encoder_layer_0.mlp.linear_1.bias"
    state[twin] = state["encoder.layers.encoder_layer_0.mlp.0.bias"] + 1
    torch.save(state, tmp_path / "two.pt")
    with pytest.raises(
        cv.CircuitError, match="mlp.0.bias and .*linear_1.bias are two names of one"
    ):
        cv.load_vit(a_torchvision(), checkpoint=tmp_path / "two.pt")


def test_what_a_bare_checkpoint_does_not_tell_is_warned_of(tmp_path):
    path = tmp_path / "bare.pt"
    for module, library, guess in (
        (a_timm(), "timm", "erf GELU, ε 1e-06, global_pool='token'"),
        (a_timm(global_pool="avg"), "timm", "erf GELU, ε 1e-06, global_pool='avg'"),
        (a_torchvision(), "torchvision", "erf GELU, ε 1e-06"),
    ):
        torch.save(module.state_dict(), path)
        with pytest.warns(UserWarning, match=f"doesn't tell .*{guess}, which are assumed") as told:
            cv.load_vit(path, heads=HEADS)
        assert f"load_vit('{library}:NAME', checkpoint='{path}')" in str(told[0].message)
        assert len(told) == 1
        cv.load_vit(module, checkpoint=path)  # with the architecture nothing is guessed
    torch.save(a_timm(pre_norm=True).state_dict(), path)
    with pytest.raises(cv.CircuitError, match="has a norm_pre, as CLIP's.*Give the architecture"):
        cv.load_vit(path, heads=HEADS)


@torch.no_grad()
def test_models_that_tensors_do_not_tell_apart_are_the_reason_for_the_warning(tmp_path):
    """The same keys and shapes, another model: with its architecture it is itself."""
    for module in (
        a_timm(global_pool="avg", fc_norm=False), a_timm(act_layer="quick_gelu"), a_timm(eps=1e-2),
    ):  # fmt: skip
        torch.save(module.state_dict(), tmp_path / "bare.pt")
        with pytest.warns(UserWarning, match="To be sure, give the architecture"):
            assert not same(cv.load_vit(tmp_path / "bare.pt", heads=HEADS), module)
        assert same(cv.load_vit(module, checkpoint=tmp_path / "bare.pt"), module)


def test_a_mistyped_path_is_told_also_with_heads(tmp_path):
    for path in (tmp_path / "typo.pt", "typo.pt"):
        with pytest.raises(cv.CircuitError, match=r"no model at .*typo\.pt"):
            cv.load_vit(path, heads=3)
    for source, what in (("timm:vit_tiny_patch16_224", "name"), (tmp_path, "folder")):
        with pytest.raises(cv.CircuitError, match="heads= is for a bare checkpoint"):
            cv.load_vit(source, heads=3), what
