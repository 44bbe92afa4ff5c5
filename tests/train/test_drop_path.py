"""Stochastic depth: against blocks computed by hand, path by path and image by image."""

import pytest
import torch
from small_training import blobs, edge_model, make_vit, same_weights

import circuitvit as cv
from circuitvit.train import Recipe
from circuitvit.train.drop_path import DroppedPaths

RECIPE = Recipe(epochs=2, batch=16, drop_path=0.6)


def test_dropped_paths_write_nothing_and_kept_ones_more():
    vit, images = make_vit(depth=3).train(), blobs(16).images
    with DroppedPaths(vit, RECIPE) as dropped:
        assert [rate for _, rate in dropped.paths] == pytest.approx([0.3, 0.3, 0.6, 0.6])
        dropped.factors = factors = dropped.drawn(0, 0)
        found = vit(images)
    by_block = [torch.ones(2, 16), *factors.double().split(2)]
    expected = []
    for image in range(16):
        stream = vit.embed(images[image : image + 1])
        for block, (attends, thinks) in zip(vit.blocks, by_block, strict=True):
            write = block.attention(block.ln1(stream), block.output_bias)
            stream = stream + attends[image] * write
            stream = stream + thinks[image] * block.mlp(block.ln2(stream))
        expected.append(vit.read_out(stream))
    torch.testing.assert_close(found, torch.cat(expected))
    assert {round(x, 4) for x in factors.flatten().tolist()} == {0, round(1 / 0.7, 4), 2.5}


def test_the_share_that_is_dropped_is_as_asked_for():
    with DroppedPaths(make_vit(depth=3), Recipe(batch=4000, drop_path=0.6)) as dropped:
        factors = dropped.drawn(1, 2)
    assert (factors == 0).float().mean(dim=1).tolist() == pytest.approx(
        [0.3, 0.3, 0.6, 0.6], abs=0.03
    )
    assert factors.mean(dim=1).tolist() == pytest.approx([1] * 4, abs=0.06)


def test_hooks_are_gone_afterwards_and_evaluation_drops_nothing():
    vit, images = make_vit().eval(), blobs(16).images
    plain = vit(images)
    with DroppedPaths(vit, RECIPE) as dropped:
        dropped.factors = dropped.drawn(0, 0)
        assert torch.equal(vit(images), plain)
        vit.train()
        assert not torch.equal(vit(images), plain)
    assert torch.equal(vit(images), plain)
    trained = cv.train(vit, blobs(), blobs(), RECIPE).vit
    assert not any(module._forward_hooks for module in trained.modules())


def test_a_model_trained_with_dropped_paths_is_another():
    plain = cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16))
    again = [cv.train(make_vit(), blobs(), blobs(), RECIPE) for _ in range(2)]
    assert same_weights(again[0].vit, again[1].vit)
    assert not same_weights(again[0].vit, plain.vit)


def test_blocks_without_attention_or_mlp_have_fewer_paths():
    vit = make_vit(depth=3, heads=(2, 0, 2), head_width=4, mlp_width=(16, 16, 0))
    with DroppedPaths(vit, RECIPE) as dropped:
        assert [rate for _, rate in dropped.paths] == pytest.approx([0.3, 0.6])
    cv.train(vit, blobs(), blobs(), RECIPE)


@pytest.mark.parametrize(
    "shape", [{"depth": 1}, {"depth": 2, "heads": (2, 0), "head_width": 4, "mlp_width": (16, 0)}]
)
def test_a_model_of_which_nothing_would_be_dropped_is_refused(shape):
    vit = make_vit(**shape)
    told = rf"drop_path=0.6 would drop nothing.*first of {shape['depth']} block.*drop_path=0\."
    with pytest.raises(cv.CircuitError, match=told):
        cv.train(vit, blobs(), blobs(), RECIPE)


def test_circuits_compiled_to_edges_are_refused():
    with pytest.raises(cv.CircuitError, match=r"drop_path is of a ViT.*CircuitViT.*drop_path=0"):
        cv.train(edge_model(), blobs(), blobs(), RECIPE)
