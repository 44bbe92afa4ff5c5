"""Weights that are made of others: made permanent by load_vit, refused elsewhere, named."""

import pytest
import torch
from foreign_models import a_timm, a_torchvision, a_transformers, images, logits_of
from random_models import random_images, random_pairs, random_vit, shape
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

import circuitvit as cv
from circuitvit.plain_weights import to_own_memory
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


def every_linear(module, act):
    for layer in list(module.modules()):
        if type(layer) is nn.Linear:
            act(layer)
    return module


def masked(module):
    return every_linear(module, lambda layer: prune.random_unstructured(layer, "weight", 0.3))


@pytest.fixture
def old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        yield nn.utils.weight_norm


COMPUTED = {
    "masks of torch.nn.utils.prune": masked,
    "parametrizations (WeightNorm)": lambda m: every_linear(m, parametrizations.weight_norm),
    "parametrizations (SpectralNorm)": lambda m: every_linear(m, parametrizations.spectral_norm),
    "parametrizations (Orthogonal)": lambda m: every_linear(m, parametrizations.orthogonal),
    "spectral norm": lambda m: every_linear(m, spectral_norm),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("make", [a_timm, lambda: a_transformers("ViT"), a_torchvision])
@torch.no_grad()
def test_computed_weights_are_made_permanent_in_the_copy_alone(kind, make):  # case 15
    module = COMPUTED[kind](make()).eval()
    x = images()
    before = logits_of(module, x)
    found = examine(module)
    assert (found.vit(x) - before).abs().max() < 1e-10 * before.abs().max()
    assert any(note.startswith(f"{kind} made permanent: ") for note in found.folded)
    assert (logits_of(module, x) - before).abs().max() == 0
    assert all(p.is_leaf for p in found.vit.parameters())


@torch.no_grad()
def test_weight_norm_of_the_old_kind_is_made_permanent(old_weight_norm):
    module = every_linear(a_timm(), old_weight_norm).eval()
    found = examine(module)
    expected = logits_of(module, images())
    assert (found.vit(images()) - expected).abs().max() < 1e-10 * expected.abs().max()


def test_our_own_vit_with_masks_is_refused_by_name_and_load_vit_makes_them_permanent(tmp_path):
    vit = random_vit(shape())
    prune.l1_unstructured(vit.blocks[0].mlp.fc1, "weight", 0.5)
    parametrizations.weight_norm(vit.head)
    circuit = cv.Circuit(random_vit(shape()).config, cv.eap(
        random_vit(shape()), random_pairs(random_vit(shape())), metric="logit_difference"
    ).top(5).edges)  # fmt: skip
    message = (
        r"masks of torch.nn.utils.prune compute blocks.0.mlp.fc1.weight \(torch.nn.utils.prune.remove"
        r"\(layer, 'weight'\).*WeightNorm.*head.weight.*circuitvit.load_vit\(model\) gives a copy"
    )
    for act in (
        lambda: cv.eap(vit, random_pairs(vit), metric="logit_difference"),
        lambda: cv.compile(vit, circuit), lambda: vit.save_pretrained(tmp_path / "m"),
        lambda: cv.prune_heads(vit, {0: [1]}), lambda: cv.to_timm(vit),
    ):  # fmt: skip
        with pytest.raises(cv.CircuitError, match=message):
            act()
    assert not (tmp_path / "m").exists()
    plain = cv.load_vit(vit)
    with torch.no_grad():
        x = random_images(vit, 3)
        assert (plain(x) - vit(x)).abs().max() < 1e-12
    plain.save_pretrained(tmp_path / "m")
    cv.export(vit, tmp_path / "m.pt2")  # which compares, on a copy


class LoRA(nn.Module):
    """A layer as peft leaves it in a model."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapted(module, name):
    for path, layer in list(module.named_modules()):
        if path.endswith(name):
            setattr(module.get_submodule(path.rpartition(".")[0]), name, LoRA(layer))
    return module


class PeftModel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model


@pytest.mark.parametrize(
    "module",
    [
        adapted(a_timm(), "qkv"),
        adapted(a_transformers("ViT"), "fc1"),
        PeftModel(adapted(a_transformers("ViT"), "fc1")),
        adapted(random_vit(shape()), "qkv"),
    ],
    ids=["timm", "transformers", "PeftModel", "ours"],
)
def test_lora_has_to_be_merged_first(module):  # case 15
    with pytest.raises(cv.CircuitError, match=r"LoRA .* is in .*0.*model.merge_and_unload\(\)"):
        cv.load_vit(module)


def test_lora_in_our_own_vit_is_refused_where_it_is_used():
    vit = adapted(random_vit(shape()), "qkv")
    with pytest.raises(cv.CircuitError, match=r"LoRA .*blocks.0.attention.qkv.*merge_and_unload"):
        cv.eap(vit, random_pairs(vit), metric="logit_difference")


def test_quantised_layers_are_named():  # case 22
    module = a_timm()
    home = {"__module__": "bitsandbytes.nn.modules"}
    module.head.__class__ = type("Linear4bit", (nn.Linear,), home)
    with pytest.raises(cv.CircuitError, match="layers are quantised: head. Give the model as it"):
        cv.load_vit(module)
    module = a_timm()
    module.head.__class__ = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized"})
    module.head.__class__.__module__ = "torch.ao.nn.quantized.dynamic.modules.linear"
    with pytest.raises(cv.CircuitError, match="layers are quantised: head"):
        cv.load_vit(module)
    with pytest.raises(cv.CircuitError, match="torch.float8_e4m3fn, in which nothing is computed"):
        cv.load_vit(a_timm().to(torch.float8_e4m3fn))


@torch.no_grad()
def test_what_a_forward_pass_left_in_a_module_is_no_hindrance():
    module = a_timm()
    with torch.enable_grad():
        module.last = module(images())
    assert (cv.load_vit(module)(images()) - module.last).abs().max() < 1e-10
    module.stream = (number for number in range(3))
    with pytest.raises(cv.CircuitError, match="can't be copied .*Take off hooks and attributes"):
        cv.load_vit(module)


@torch.no_grad()
def test_averages_and_compiled_blocks_are_looked_through():
    import timm
    from torch.optim.swa_utils import AveragedModel

    module = a_timm()
    known = cv.load_vit(module).fingerprint()
    for wrapped in (AveragedModel(module), timm.utils.ModelEmaV3(module)):
        assert cv.load_vit(wrapped).fingerprint() == known
    for name in ("FullyShardedDataParallel", "CheckpointWrapper"):
        place = {"F": "_fsdp_wrapped_module", "C": "_checkpoint_wrapped_module"}[name[0]]
        wrapper = type(name, (nn.Module,), {})()
        setattr(wrapper, place, module.blocks[0])
        module.blocks[0] = wrapper
    assert cv.load_vit(module).fingerprint() == known


def test_other_wrappers_say_where_the_model_is(as_users_call):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = a_timm()

    class Pipeline:
        model = a_timm()

    with pytest.raises(cv.CircuitError, match=r"holds a VisionTransformer \(give .*: module.net\)"):
        cv.load_vit(Task())
    with pytest.raises(cv.CircuitError, match=r"Pipeline. Give the module that it holds, its .mod"):
        cv.load_vit(Pipeline())


def tied():
    vit = random_vit(shape())
    vit.blocks[1] = vit.blocks[0]
    vit.blocks[0].mlp.fc1.bias = nn.Parameter(vit.blocks[0].mlp.fc1.bias[:].detach())
    return vit


@torch.no_grad()
def test_tied_blocks_are_saved_and_exported_with_the_same_logits(tmp_path):  # case 17
    vit, x = tied(), random_images(random_vit(shape()), 3)
    vit.save_pretrained(tmp_path / "ours")
    for loaded in (cv.ViT.from_pretrained(tmp_path / "ours"), cv.load_vit(vit)):
        assert (loaded(x) - vit(x)).abs().max() < 1e-12
    assert (cv.to_timm(vit)(x) - vit(x)).abs().max() < 1e-12
    assert (cv.to_transformers(vit)(x).logits - vit(x)).abs().max() < 1e-12
    for to in ("timm", "transformers"):
        cv.export(vit.float(), tmp_path / to, to=to)
        assert (cv.load_vit(tmp_path / to)(x.float()) - vit(x.float())).abs().max() < 1e-4


def test_tensors_that_share_memory_are_parted_and_others_are_not_copied():
    one = torch.arange(6.0).view(2, 3)
    found = to_own_memory({"a": one, "b": one, "c": one.T, "d": one[:0]})
    assert found["a"].data_ptr() == one.data_ptr()
    assert len({found[name].data_ptr() for name in "abc"}) == 3
    assert all(torch.equal(found[name], t) for name, t in {"b": one, "c": one.T}.items())
