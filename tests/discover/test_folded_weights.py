"""Folded weights compute what the block computes."""

import pytest
import torch
from random_models import agree, random_images, random_vit, shape

from circuitvit.discover.acdc.engine.unit_forward import (
    Heads,
    Measured,
    Neurons,
    Projected,
    UnitForward,
    centred,
    inverse_deviation,
    squares,
)
from circuitvit.models.sublayers import attention_layer, mlp_layer
from circuitvit.models.vit import PARTS

SHAPES = ("uniform", "ragged", "registers, q/k norm, no qkv bias, tanh")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def stream(vit, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = vit.config
    return 1.5 + torch.randn(2, config.tokens, config.width, generator=generator).double()


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_heads_on_their_own_do_what_they_do_in_their_block(name, folded):
    vit = random_vit(shape(name), seed=90)
    units, x = UnitForward(vit, folded=folded), stream(vit)
    for index, block in enumerate(vit.blocks):
        if block.attention is None:
            with pytest.raises(KeyError):
                units.heads_of(index)
            continue
        whole = block.attention.mix(block.ln1(x))
        for heads in ([0], list(range(vit.config.heads[index]))):
            reads = units.measured(units.plain(x).expand(len(heads), *x.shape))
            weights = units.heads_of(index)
            parts = {part: weights.project(part, heads, reads) for part in PARTS}
            made = units.run_heads(index, heads, "all", parts)
            assert torch.allclose(made["z"].transpose(0, 1), whole[:, heads], atol=1e-12)
            assert torch.allclose(made["pattern"].sum(dim=-1), torch.ones(()).double())


@pytest.mark.parametrize("name", SHAPES)
def test_products_and_lengths_stand_for_what_is_read(name):
    vit = random_vit(shape(name), seed=91)
    x = centred(stream(vit))
    heads = Heads.of(attention_layer(vit, 0), folded=True)
    neurons = Neurons.of(mlp_layer(vit, 0), folded=True)
    for part in PARTS:
        products = x @ heads.of_part(part)[0].T
        stands = Projected(products[None], squares(x)[None])
        assert torch.allclose(
            heads.project(part, [0], stands),
            heads.project(part, [0], Measured(x[None], squares(x)[None])),
            atol=1e-12,
        )
    stands = Projected(x @ neurons.first.T, squares(x))
    whole = neurons.hidden(Measured(x, squares(x)))
    assert torch.allclose(neurons.hidden(stands), whole, atol=1e-12)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_an_mlp_on_its_own_does_what_it_does_in_its_block(name, folded):
    vit = random_vit(shape(name), seed=92)
    units, x = UnitForward(vit, folded=folded), stream(vit)
    for index, block in enumerate(vit.blocks):
        if block.mlp is None:
            with pytest.raises(KeyError):
                units.neurons_of(index)
            continue
        wanted = units.plain(block.mlp(block.ln2(x)))
        read = units.measured(units.plain(x))
        assert torch.allclose(units.run_mlp(index, "all", read), wanted, atol=1e-12)
        mean = wanted[:, vit.config.prefix_tokens :].mean(dim=1, keepdim=True)
        assert torch.allclose(units.run_mlp(index, "mean", read), mean, atol=1e-12)
        row = units.run_mlp(index, "class", units.measured(units.plain(x)[:, :1]))
        assert torch.allclose(row, wanted[:, :1], atol=1e-12)


@pytest.mark.parametrize("folded", [True, False])
def test_z_in_the_stream_is_what_the_head_writes(folded):
    vit = random_vit(shape("ragged"), seed=93)
    attention = vit.blocks[2].attention
    z = attention.mix(vit.blocks[2].ln1(stream(vit)))
    heads = Heads.of(attention_layer(vit, 2), folded=folded)
    written = torch.einsum("ihtd,hdw->hitw", z, attention.output_weight())
    for some in ([1], [2, 0]):
        wanted = centred(written[some]) if folded else written[some]
        assert torch.allclose(heads.expand(some, z.transpose(0, 1)[some]), wanted, atol=1e-12)


def test_a_layer_norm_is_a_factor_a_token_once_the_mean_is_gone():
    vit = random_vit(shape(), seed=94)
    norm, x = vit.blocks[0].ln1, stream(vit)
    factor = inverse_deviation(squares(centred(x)), norm)
    assert torch.allclose(centred(x) * factor * norm.weight + norm.bias, norm(x), atol=1e-12)
    assert torch.allclose(squares(x), (x * x).sum(dim=-1, keepdim=True))


def test_the_models_own_weights_are_left_alone():
    vit = random_vit(shape(), seed=95)
    before = {name: p.clone() for name, p in vit.named_parameters()}
    logits = vit(random_images(vit, 2))
    units = UnitForward(vit, folded=True)
    for weights in (units.heads_of(0), units.neurons_of(0)):
        for tensor in vars(weights).values():
            if isinstance(tensor, torch.Tensor):
                tensor.zero_()
    assert all(torch.equal(before[name], p) for name, p in vit.named_parameters())
    assert agree(vit(random_images(vit, 2)), logits)
