"""The walk over sub-layers computes the model itself, whatever its blocks lack."""

import pytest
import torch
from random_models import SHAPES, random_images, random_vit, shape

from circuitvit.graph.edge_graph import units_of
from circuitvit.models.sublayers import (
    AttentionLayer,
    EmptyLayer,
    MlpLayer,
    attention_layer,
    constants_before,
    mlp_layer,
    sublayers,
)


@torch.no_grad()
def walked(vit, images):
    stream = vit.embed(images)
    for layer in sublayers(vit):
        if isinstance(layer, AttentionLayer):
            stream = layer.after_writes(stream, layer.mix(stream))
        elif isinstance(layer, MlpLayer):
            stream = layer.after_writes(stream, layer.mlp.fc2(layer.neurons(stream)))
        else:
            stream = layer.after(stream)
    return vit.read_out(stream)


@pytest.mark.parametrize("name", SHAPES)
def test_the_walk_gives_the_logits(name):
    vit = random_vit(shape(name), seed=3)
    images = random_images(vit, 3)
    with torch.no_grad():
        assert torch.allclose(walked(vit, images), vit(images), atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_it_names_every_unit_in_forward_order(name):
    vit = random_vit(shape(name), seed=3)
    layers = sublayers(vit)
    assert [unit for layer in layers for unit in layer.units] == list(units_of(vit.config))
    assert [layer.block for layer in layers] == [n // 2 for n in range(2 * vit.config.depth)]


@pytest.mark.parametrize("name", SHAPES)
def test_folded_weights_give_of_the_normalised_stream_what_the_block_gives(name):
    vit = random_vit(shape(name), seed=4)
    x = torch.randn(2, vit.config.tokens, vit.config.width, dtype=torch.float64) + 1.5
    centred = x - x.mean(dim=-1, keepdim=True)
    for layer in sublayers(vit):
        if isinstance(layer, EmptyLayer) and not layer.units:
            continue
        linear = layer.attention.qkv if isinstance(layer, AttentionLayer) else layer.mlp.fc1
        weight, bias = layer.folded()
        hat = centred / (centred.square().mean(dim=-1, keepdim=True) + layer.norm.eps).sqrt()
        with torch.no_grad():
            assert torch.allclose(hat @ weight.T + bias, linear(layer.norm(x)), atol=1e-10)


def test_what_no_unit_writes_adds_up_to_the_models_constants():
    vit = random_vit(shape("ragged"), seed=5)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.fc2.weight", "mlp.fc2.bias")):
                parameter.zero_()
        images = random_images(vit, 2)
        stream = vit.embed(images)
        end = constants_before(vit, 2 * vit.config.depth)
        assert torch.allclose(vit.read_out(stream + end), vit(images), atol=1e-12)


def test_asking_for_what_a_block_lacks_is_our_own_mistake():
    vit = random_vit(shape("ragged"), seed=5)
    for block in range(vit.config.depth):
        for present, layer in (
            (vit.config.heads, attention_layer),
            (vit.config.mlp_width, mlp_layer),
        ):
            if not present[block]:
                with pytest.raises(AssertionError):
                    layer(vit, block)
