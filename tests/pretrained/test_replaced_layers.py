"""Layers that were replaced in another library's model: read where they are plain, else named."""

import pytest
import torch
from foreign_models import HEADS, a_timm, a_torchvision, a_transformers, images, logits_of
from torch import nn

import circuitvit as cv
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


class Around(nn.Module):
    """LoRA as scripts for SAM write it."""

    def __init__(self, layer):
        super().__init__()
        self.qkv = layer
        self.linear_a_q = nn.Linear(layer.in_features, 2, bias=False).double()
        self.linear_b_q = nn.Linear(2, layer.out_features, bias=False).double()

    def forward(self, x):
        return self.qkv(x) + self.linear_b_q(self.linear_a_q(x))


class Low(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.base = layer
        self.A = nn.Parameter(torch.ones(2, layer.in_features).double())
        self.B = nn.Parameter(torch.ones(layer.out_features, 2).double())

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class Added(nn.Linear):
    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, dtype=torch.float64)
        self.A = nn.Parameter(torch.ones(2, layer.in_features).double())


MODELS = {
    "timm": (a_timm, ("blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.0.mlp.fc1",
                      "blocks.1.mlp.fc2")),
    "transformers": (lambda: a_transformers("ViT"), ("attention.q_proj", "attention.o_proj",
                                                     "mlp.fc1", "mlp.fc2")),
    "Dinov2": (lambda: a_transformers("Dinov2"), ("q", "o", "mlp.fc1", "mlp.fc2")),
    "torchvision": (a_torchvision, ("mlp.0", "mlp.3", "self_attention.out_proj")),
}  # fmt: skip


def linear_layers(module):
    """The paths of the linear layers in blocks."""
    return [path for path, layer in module.named_modules()
            if isinstance(layer, nn.Linear) and path.count(".") > 2]  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("wrap", [Around, Low, Added, lambda _: nn.Identity()])
def test_a_replaced_layer_is_named_with_its_class_and_what_to_do(kind, wrap):
    make, _ = MODELS[kind]
    for path in linear_layers(make()):
        module = make()
        new = wrap(module.get_submodule(path))
        module.set_submodule(path, new)
        with pytest.raises(cv.CircuitError) as told:
            cv.load_vit(module)
        assert path in str(told.value)
        assert type(new).__name__ in str(told.value)
        assert "merge_and_unload()" in str(told.value)
        assert "put the plain layer back" in str(told.value)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_a_sequential_of_one_linear_layer_and_dropouts_is_read(kind):
    make, _ = MODELS[kind]
    for path in linear_layers(make()):
        if "self_attention" in path:
            continue  # whose weight torch reads without calling it
        module = make()
        layer = module.get_submodule(path)
        module.set_submodule(path, nn.Sequential(nn.Identity(), nn.Sequential(layer), nn.Dropout()))
        found = examine(module.eval())
        assert (found.vit(images()) - logits_of(module, images())).abs().max() < 1e-9


def test_many_replaced_layers_are_counted():
    module = a_timm()
    for block in module.blocks:
        for layer, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1")):
            setattr(layer, name, Low(getattr(layer, name)))
    with pytest.raises(cv.CircuitError, match=r"blocks.0.attn.qkv is a test_replaced_layers.Low, .*"
                       "blocks.1.attn.qkv is .* and 2 more, where a plain"):  # fmt: skip
        cv.load_vit(module)


def test_a_missing_layer_is_named_before_anything_is_assembled():
    module = a_timm()
    for name in ("qkv", "proj"):
        broken = a_timm()
        del broken.blocks[0].attn._modules[name]
        role = {"qkv": "qkv", "proj": "out"}[name]
        with pytest.raises(cv.CircuitError, match=f"no blocks.0.attention.{role}.weight, as circ"):
            cv.load_vit(broken)
    assert cv.load_vit(module).config.depth == 2


def test_another_norm_in_a_block_of_transformers_is_named():
    module = a_transformers("ViT")
    module.vit.layers[0].layernorm_before = nn.RMSNorm(24)
    with pytest.raises(cv.CircuitError, match="layernorm_before is a RMSNorm, not a LayerNorm"):
        cv.load_vit(module)


def test_adapters_of_ones_own_in_a_file_are_named(tmp_path):
    module = a_timm()
    module.blocks[0].attn.qkv = Around(module.blocks[0].attn.qkv)
    module.blocks[0].mlp.fc1 = Low(module.blocks[0].mlp.fc1)
    torch.save(module.state_dict(), tmp_path / "own.pth")
    told = r"Another layer is at blocks.0.attn.qkv, blocks.0.mlp.fc1. If it is an adapter"
    for source, more in ((tmp_path / "own.pth", {"heads": HEADS}),
                         (a_timm(), {"checkpoint": tmp_path / "own.pth"})):  # fmt: skip
        with pytest.raises(cv.CircuitError, match=told):
            cv.load_vit(source, **more)
