from dataclasses import replace

import numpy as np
import pytest
from random_models import SHAPES, shape

import circuitvit as cv


def test_one_value_stands_for_all_blocks():
    config = cv.ViTConfig(depth=3, heads=4, width=64, mlp_width=(1, 2, 3))
    assert config.heads == (4, 4, 4)
    assert config.head_width == (16, 16, 16)
    assert config.mlp_width == (1, 2, 3)
    assert config.depth == 3


def test_the_defaults_are_vit_b_16s():
    config = cv.ViTConfig()
    assert (config.depth, config.width, config.tokens) == (12, 768, 197)
    assert config.heads == (12,) * 12
    assert config.mlp_width == (3072,) * 12


@pytest.mark.parametrize("name", SHAPES)
def test_a_config_survives_its_dict(name):
    assert cv.ViTConfig.from_dict(shape(name).as_dict()) == shape(name)
    assert replace(shape(name), classes=9).classes == 9


def test_every_problem_is_named_together(as_users_call):
    with pytest.raises(cv.CircuitError) as refusal:
        cv.ViTConfig(image_size=10, patch_size=4, classes=0, activation="relu", heads=-1)
    for part in ("does not divide", "classes is 0", "activation is 'relu'", "heads is (-1"):
        assert part in str(refusal.value)


def test_contradictions_are_refused(as_users_call):
    for bad, message in (
        (dict(heads=(1, 2), mlp_width=(3, 4, 5), head_width=2), "disagree on the number of blocks"),
        (dict(heads=(1, 2)), "give head_width too"),
        (dict(class_token=False), "there is no class token"),
        (dict(fc_norm=True), "goes with pooling in .'mean', 'mean_all'. only"),
        (dict(pooling="class_distillation"), "there is no register token"),
        (dict(pooling="class_mean", class_token=False), "class_mean' but there is no class token"),
        (dict(embed_norm=1), "embed_norm is 1, expected True or False"),
        (dict(layer_norm_eps=0.0), "layer_norm_eps"),
        (dict(heads=2.5), "expected whole numbers"),
        (dict(image_size=(8, 8)), r"image_size is \(8, 8\)"),
        (dict(image_size="8"), "image_size is '8'"),
        (dict(depth=2.5), "depth is 2.5"),
        (dict(depth=-1), "depth is -1"),
        (dict(layer_norm_eps="x"), "layer_norm_eps is 'x'"),
        (dict(class_token="no"), "class_token is 'no', expected True or False"),
        (dict(width=50, heads=4), "4 heads do not divide width 50"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.ViTConfig(**bad)


def test_a_foreign_dict_is_refused():
    with pytest.raises(cv.CircuitError, match=r"unknown fields \['hidden_size'\]"):
        cv.ViTConfig.from_dict({"hidden_size": 768})


def test_a_config_is_frozen():
    with pytest.raises(AttributeError):
        shape().heads = (1,)


def test_numpys_numbers_are_numbers(as_users_call):
    config = cv.ViTConfig(width=np.int64(12), heads=np.array([2, 3]), head_width=3, mlp_width=4)
    assert config == cv.ViTConfig(width=12, heads=(2, 3), head_width=3, mlp_width=4)
    assert type(config.width) is type(config.heads[0]) is int
    assert cv.ViTConfig(heads=[]).depth == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(depth=100_000), "depth tells of 100000 blocks, expected at most 1,000"),
        (dict(depth=10**5000), "a number of some 4983 digits"),
        (dict(heads=[1] * 10**6), "heads tells of 1000000 blocks"),
        (dict(heads=10**8, head_width=1), "heads is .*expected at most 1,048,576"),
        (dict(heads=10**4, head_width=1), "120,000 heads in all, expected at most 65,536"),
        (dict(width=2**63, heads=1), "width is .*expected at most 1,048,576"),
        (dict(width=2**20, heads=1, mlp_width=1, depth=1000), "parameters, expected at most"),
        (dict(image_size=2**20, patch_size=1), "tokens, expected at most 1,048,576"),
        (dict(heads=[[1]], head_width=None), r"heads is \(\[1\],\), expected whole numbers"),
        (dict(heads={"a": 1}), "heads is .*expected whole numbers"),
        (dict(layer_norm_eps=10**400), "layer_norm_eps is .*expected a finite number"),
        (dict(layer_norm_eps=True), "layer_norm_eps is True"),
    ],
)
def test_what_no_computer_holds_is_refused_before_it_is_made(fields, message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        cv.ViTConfig(**fields)


def test_the_largest_vits_are_within_the_bounds():
    config = cv.ViTConfig(width=6144, depth=48, heads=48, mlp_width=24576, patch_size=14)
    assert (config.depth, sum(config.heads)) == (48, 2304)
