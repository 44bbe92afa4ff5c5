"""Which weights of a checkpoint are taken, under which names, and what is left over."""

import pytest
import torch
from foreign_models import (
    HEADS,
    a_sequential_head,
    a_timm,
    a_torchvision,
    a_transformers,
    images,
    logits_of,
)
from random_models import random_vit, shape
from torch import nn
from torch.nn.utils import parametrizations, prune
from typer.testing import CliRunner

import circuitvit as cv
from circuitvit.cli import app
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


@torch.no_grad()
def check_same(found, module):
    expected = logits_of(module, images())
    assert (found.vit(images()) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.fixture
def saved(tmp_path):
    """Saves what it is given, and examines the file, bare or in an architecture."""

    def save(content, module=None, **options):
        path = tmp_path / "last.pth"
        torch.save(content, path)
        if module is None:
            return examine(path, heads=HEADS, **options)
        return examine(module, checkpoint=path, **options)

    return save


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


# Averages (case 6)


BOTH = {
    "timm": ("state_dict", "state_dict_ema", "ema"),
    "torchvision": ("model", "model_ema", "ema"),
    "names that timm doesn't know": ("model_state_dict", "ema_state_dict", "ema"),
    "where timm takes the model": ("model", "ema", "model"),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("bare", [True, False])
def test_the_weights_that_timm_takes_are_taken_and_said(kind, bare, saved):
    model, average, taken = BOTH[kind]
    module = a_timm()
    mine = module.state_dict()
    source = None if bare else module
    for asked in (None, "ema", "model"):
        right, wrong = (average, model) if (asked or taken) == "ema" else (model, average)
        found = saved({wrong: other(mine), right: mine, "epoch": 3}, source, weights=asked)
        check_same(found, module)
        assert any(f"taken from {right!r}" in note and f"{wrong!r} left" in note
                   for note in found.folded)  # fmt: skip
        said = [text for text in found.guessed if "weights='" in text]
        assert len(said) == (asked is None)
        if said:
            assert f"{right!r}, " in said[0]
            assert f"weights={'model' if taken == 'ema' else 'ema'!r} takes the other" in said[0]


def test_timms_own_function_takes_the_same(saved, tmp_path):
    from timm.models import load_state_dict

    module = a_timm()
    mine = module.state_dict()
    for content in (
        {"state_dict": other(mine), "state_dict_ema": mine},
        {"state_dict": mine, "state_dict_ema": None},
        {"model": other(mine), "model_ema": mine, "state_dict": other(mine)},
        {"model": other(mine), "state_dict": mine},
        {"model": mine, "ema": other(mine)},
    ):
        check_same(saved(content), module)
        theirs = load_state_dict(str(tmp_path / "last.pth"))
        assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())


def test_load_vit_warns_of_the_choice_once(tmp_path):
    module = a_timm()
    mine, path = module.state_dict(), tmp_path / "last.pth"
    torch.save({"state_dict": mine, "state_dict_ema": other(mine)}, path)
    with pytest.warns(
        UserWarning, match="'state_dict_ema', an average.*, is taken, as timm"
    ) as told:
        cv.load_vit(module, checkpoint=path)
    assert len(told) == 1
    assert cv.load_vit(module, checkpoint=path, weights="model").config.classes == 5


def test_an_average_inside_a_flat_file_is_a_choice_too(saved):
    module = a_timm()
    mine = module.state_dict()
    flat = {f"model.{k}": v for k, v in other(mine).items()}
    flat |= {f"model_ema.module.{k}": v for k, v in mine.items()}
    check_same(saved(flat), module)
    check_same(saved(flat, weights="ema"), module)
    with pytest.raises(cv.CircuitError, match="several models, under 'student.', 'teacher.'.*"
                       r"k.removeprefix\('student.'\)"):  # fmt: skip
        saved({f"{who}.{k}": v for who in ("student", "teacher") for k, v in mine.items()})


def test_a_choice_that_is_not_there_is_refused(saved, tmp_path, as_users_call):
    module, vit = a_timm(), random_vit(shape())
    mine = module.state_dict()
    for bad in ("average", "", 3):
        with pytest.raises(
            cv.CircuitError, match=f"weights is {bad!r}, expected one of .'ema', 'mo"
        ):
            saved(mine, weights=bad)
    for asked in ("ema", "model"):
        with pytest.raises(cv.CircuitError, match="one set of weights, without a choice"):
            saved(mine, weights=asked)
    with pytest.raises(cv.CircuitError, match="weights is 'ema', but .* holds only 'state_dict'"):
        saved({"state_dict": mine, "state_dict_ema": None}, weights="ema")
    vit.save_pretrained(tmp_path / "ours")
    a_transformers("ViT").save_pretrained(tmp_path / "theirs")
    for source in (module, vit, tmp_path / "ours", tmp_path / "theirs", "timm:test_vit"):
        with pytest.raises(
            cv.CircuitError, match="weights is 'ema', which chooses in a checkpoint"
        ):
            cv.load_vit(source, weights="ema")
    with pytest.raises(cv.CircuitError, match="weights is 'ema', but .*one set of weights"):
        cv.load_vit(tmp_path / "ours" / "model.safetensors", weights="ema")


def test_inspect_takes_and_tells_the_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    mine, path = a_timm().state_dict(), tmp_path / "last.pth"
    torch.save({"state_dict": mine, "state_dict_ema": other(mine)}, path)
    command = ["inspect", str(path), "--heads", "3"]
    told = CliRunner().invoke(app, command).output
    assert "weights taken from 'state_dict_ema', an average, of last.pth" in told
    told = CliRunner().invoke(app, [*command, "--weights", "model"]).output
    assert "weights taken from 'state_dict' of last.pth" in told
    wrong = CliRunner().invoke(app, [*command, "--weights", "best"])
    assert "weights is 'best', expected one of" in str(wrong.exception)


# Prefixes and heads (case 20)


PREFIXES = [
    "module.", "_orig_mod.", "model.", "model.backbone.", "module._orig_mod.", "net.encoder.",
    "_orig_mod.module.model.", "timm_model.", "base_model.model.",
]  # fmt: skip
MAKE = {
    "timm": a_timm, "torchvision": a_torchvision, "transformers": lambda: a_transformers("ViT"),
    "Dinov2": lambda: a_transformers("Dinov2"), "SigLIP": lambda: a_transformers("Siglip"),
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", MAKE)
def test_any_prefix_that_the_models_keys_share_is_left_out(prefix, kind, saved):
    module = MAKE[kind]()
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    surplus = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(4)}
    for source in (module, None) if kind.startswith("t") and kind != "transformers" else (module,):
        found = saved(state | surplus, source)
        check_same(found, module)
        assert set(surplus) <= set(found.unused)
        assert any(prefix.split(".")[0] in note for note in found.folded)


def test_wrappers_of_single_blocks_are_left_out_of_the_names(saved):
    module = a_timm()
    for inner in ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module._orig_mod."):
        state = {k.replace("blocks.1.", f"blocks.1.{inner}"): v
                 for k, v in module.state_dict().items()}  # fmt: skip
        check_same(saved(state), module)


def test_surplus_keys_are_unused_unless_they_tell_of_another_model(saved):
    module = a_timm()
    state = module.state_dict()
    for source in (None, module):
        found = saved(state | {"loss.weight": torch.ones(2), "mask_token": torch.ones(1)}, source)
        check_same(found, module)
        assert found.unused == ("loss.weight", "mask_token")
    deeper = {k.replace("blocks.1.", "blocks.2."): v for k, v in state.items()}
    with pytest.raises(cv.CircuitError, match="blocks.2.attn.proj.bias is surplus"):
        saved(state | deeper, module)
    with pytest.raises(cv.CircuitError, match="pre_logits.fc.weight is surplus"):
        saved(state | {"pre_logits.fc.weight": torch.ones(2, 2)}, module)
    vit = random_vit(shape())
    assert saved(vit.state_dict() | {"decoder.weight": torch.ones(1)}, vit).unused == (
        "decoder.weight",
    )


def test_surplus_keys_of_a_folder_are_unused(tmp_path):
    from safetensors.torch import load_file, save_file

    module = a_transformers("ViT")
    module.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path) | {"criterion.weight": torch.ones(2).double()}
    save_file(state, path, metadata={"format": "pt"})
    found = examine(tmp_path)
    check_same(found, module)
    assert "criterion.weight" in found.unused
    lora = {"vit.layers.0.attention.q_proj.lora_A.default.weight": torch.ones(2, 2).double()}
    save_file(state | lora, path, metadata={"format": "pt"})
    with pytest.raises(cv.CircuitError, match=r"LoRA .*q_proj.*merge_and_unload"):
        cv.load_vit(tmp_path)


HEAD_NAMES = ["head.1.", "head.fc.", "head.0.linear."]


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_a_head_that_is_a_sequentials_only_layer_is_the_head(name, saved):
    module = a_timm()
    state = {k.replace("head.", name): v for k, v in module.state_dict().items()}
    for source in (None, module):
        found = saved(state, source)
        check_same(found, module)
        assert any("read as the head's only layer" in note for note in found.folded)


def test_heads_of_other_libraries_and_modules_may_be_sequential(saved):
    module = a_torchvision()
    state = {k.replace("heads.head.", "heads.1."): v for k, v in module.state_dict().items()}
    for source in (None, module):
        check_same(saved(state, source), module)
    module = a_transformers("ViT")
    state = module.state_dict()
    check_same(saved({k.replace("classifier.", "classifier.1."): v for k, v in state.items()},
                     module), module)  # fmt: skip
    module = a_timm(head=a_sequential_head())
    state = {k.replace("head.1.", "head."): v for k, v in module.state_dict().items()}
    check_same(saved(state, module), module)


def test_heads_that_are_not_one_linear_layer_are_named(saved):
    state = a_timm().state_dict()
    two = {k.replace("head.", "head.1."): v for k, v in state.items()} | {
        "head.0.weight": torch.ones(24)
    }
    with pytest.raises(cv.CircuitError, match="no head.weight.*looks like a head is head.1.weight"):
        saved(two)
    outside = {(k if k.startswith("head.") else f"backbone.{k}"): v for k, v in state.items()}
    outside["head.0.weight"] = torch.ones(24)  # a norm before it
    with pytest.raises(cv.CircuitError, match=r"head is .*head.weight \(outside of the prefix\)"):
        saved(outside)
    with pytest.raises(
        cv.CircuitError, match="outside of the prefix it has head.0.weight, head.bias, head.weight"
    ):
        saved(outside, a_timm())


# Weights that are made of others, in files (case 15)


def test_masks_in_a_file_are_applied_and_other_computed_weights_refused(saved):
    module = a_timm()
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            prune.random_unstructured(layer, "weight", 0.3)
    found = saved(module.state_dict())
    check_same(found, module)
    assert any(note.startswith("masks of torch.nn.utils.prune applied") for note in found.folded)
    module = a_timm()
    parametrizations.weight_norm(module.head)
    with pytest.raises(
        cv.CircuitError, match=r"made of others \(head.parametrizations.*remove_para"
    ):
        saved(module.state_dict())
    state = a_timm().state_dict()
    state["head.weight_g"], state["head.weight_v"] = torch.ones(5, 1), state.pop("head.weight")
    with pytest.raises(cv.CircuitError, match="torch.nn.utils.remove_weight_norm"):
        saved(state)


def test_lora_and_quantised_weights_in_a_file_are_refused(saved):
    state = a_timm().state_dict()
    lora = {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 24)}
    for content in (state | lora, {f"base_model.model.{k}": v for k, v in (state | lora).items()}):
        with pytest.raises(
            cv.CircuitError, match=r"LoRA .*blocks.0.attn.qkv.*merge_and_unload\(\)"
        ):
            saved(content)
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].to(torch.int8)
    with pytest.raises(cv.CircuitError, match="layers are quantised: blocks.0.mlp.fc1.weight"):
        saved(state)


@pytest.mark.parametrize("name", ["criterion.log_g", "loss.temp_u", "loss.scale_orig_u"])
def test_a_losss_own_parameter_is_not_taken_for_a_computed_weight(name, tmp_path):
    module = a_timm()
    torch.save({**module.state_dict(), name: torch.ones(3)}, tmp_path / "m.pth")
    found = examine(module, checkpoint=tmp_path / "m.pth")
    assert name in found.unused


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda layer: torch.nn.utils.weight_norm(layer), "remove_weight_norm"),
        (lambda layer: torch.nn.utils.spectral_norm(layer), "remove_spectral_norm"),
        (torch.nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_in_a_file_are_told_by_their_partners(make, call, tmp_path):
    module = a_timm()
    make(module.blocks[0].mlp.fc1)
    torch.save(module.state_dict(), tmp_path / "m.pth")
    with pytest.raises(cv.CircuitError, match=rf"made of others \(blocks.0.mlp.fc1.*{call}"):
        examine(a_timm(), checkpoint=tmp_path / "m.pth")
