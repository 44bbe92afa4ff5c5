"""Training: against closed forms, and to the bit where a run is repeated or resumed."""

import json
import math

import pytest
import torch
from small_training import blobs, edge_model, make_vit, same_weights, timeless

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet
from circuitvit.train import Recipe, training
from circuitvit.train.batches import affine_matrices, random_affines, transformed

# What training does


def test_training_learns():
    recipe = Recipe(epochs=60, batch=16, learning_rate=1e-2, translate=0, rotate=5)
    result = cv.train(make_vit(width=16), blobs(), blobs(seed=1), recipe)
    first, last = result.history[0], result.history[-1]
    assert first["validation_accuracy"] < 0.6 < 0.9 < last["validation_accuracy"]
    assert last["loss"] < 0.7 * first["loss"]
    assert [entry["epoch"] for entry in result.history] == list(range(1, 61))
    assert all(entry["seconds"] > 0 for entry in result.history)
    assert not result.vit.training
    held_out = blobs(seed=1)
    hits = result.vit(held_out.images).argmax(dim=1) == held_out.labels
    assert last["validation_accuracy"] == hits.double().mean().item()


def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_does_not():
    runs = [
        cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16, seed=s))
        for s in (0, 0, 1)
    ]
    assert same_weights(runs[0].vit, runs[1].vit)
    assert timeless(runs[0].history) == timeless(runs[1].history)
    assert not same_weights(runs[0].vit, runs[2].vit)


def test_the_callers_model_images_and_random_state_are_left_alone():
    vit, images = make_vit().eval(), blobs()
    before, pixels = vit.fingerprint(), images.fingerprint()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    result = cv.train(vit, images, images, Recipe(epochs=2, batch=16))
    assert torch.equal(torch.rand(3), expected)
    assert vit.fingerprint() == before != result.vit.fingerprint()
    assert images.fingerprint() == pixels
    assert not vit.training
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_the_first_step_is_adamws_by_hand():
    """One batch, one step: θ(1 − ηλ) − η·g/(|g| + ε), g clipped; λ = 0 without weight decay."""
    vit, images = make_vit(), blobs(16)
    recipe = Recipe(
        epochs=1, batch=16, learning_rate=0.02, warmup_epochs=0, weight_decay=0.3, clip=0.05,
        augment=False,
    )  # fmt: skip
    result = cv.train(vit, images, images, recipe)

    log_p = vit(images.images).log_softmax(dim=1)
    nll = -log_p[torch.arange(16), images.labels]
    loss = (0.9 * nll + 0.1 * -log_p.mean(dim=1)).mean()
    assert result.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert result.history[0]["learning_rate"] == 0.02
    named = dict(vit.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm > 0.05
    trained = dict(result.vit.named_parameters())
    for (name, old), gradient in zip(named.items(), gradients, strict=True):
        g = gradient * 0.05 / (norm + 1e-6)
        decays = name == "patch.weight" or (old.ndim == 2 and name.endswith("weight"))
        new = old * (1 - 0.02 * 0.3 * decays) - 0.02 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(trained[name], new, rtol=1e-7, atol=1e-9)


def test_norms_biases_positions_tokens_and_constants_do_not_decay():
    vit = make_vit(register_tokens=2, mlp_constant=True, qk_norm=True)
    decayed, kept = training.adamw(vit, Recipe(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    chosen = {id(parameter) for parameter in decayed["params"]}
    names = {name for name, parameter in vit.named_parameters() if id(parameter) in chosen}
    layers = ("attention.qkv", "attention.out", "mlp.fc1", "mlp.fc2")
    blocks = {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    assert names == {"patch.weight", "head.weight"} | blocks
    assert len(chosen) + len(kept["params"]) == len(list(vit.parameters()))


def test_tables_of_edge_circuits_do_not_decay_and_the_model_trains():
    small = edge_model()
    decayed, _ = training.adamw(small, Recipe()).param_groups
    chosen = {id(parameter) for parameter in decayed["params"]}
    names = {name for name, parameter in small.named_parameters() if id(parameter) in chosen}
    assert all(name.endswith(".weight") for name in names)
    assert any("table" in name for name, _ in small.named_parameters())
    before = small.fingerprint()
    trained = cv.train(small, blobs(), blobs(seed=1), Recipe(epochs=1, batch=16)).vit
    assert isinstance(trained, cv.CircuitViT)
    assert trained.fingerprint() != before == small.fingerprint()


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    recipe = Recipe(epochs=10, learning_rate=0.8, warmup_epochs=2)
    rates = [recipe.learning_rate_at(step, steps_an_epoch=4) for step in range(40)]
    assert rates[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert rates[8] == pytest.approx(0.8)
    assert rates[24] == pytest.approx(0.4)  # half of the way down
    assert rates[16] == pytest.approx(0.4 * (1 + math.sqrt(0.5)))
    assert 0 < rates[39] < 0.002
    short = Recipe(epochs=2, learning_rate=0.8)  # warm-up 5, cut to one epoch
    assert [short.learning_rate_at(s, steps_an_epoch=2) for s in range(4)] == pytest.approx(
        [0.4, 0.8, 0.8, 0.4]
    )


def test_the_recorded_learning_rate_is_that_of_each_epochs_last_step():
    recipe = Recipe(epochs=4, batch=20, warmup_epochs=1)  # 48 images: 2 steps, 8 images sit out
    history = cv.train(make_vit(), blobs(), blobs(), recipe).history
    expected = [recipe.learning_rate_at(step, steps_an_epoch=2) for step in (1, 3, 5, 7)]
    assert [entry["learning_rate"] for entry in history] == expected


def test_every_epoch_draws_a_new_order_and_sees_each_image_once(monkeypatch):
    seen, forward = [], cv.ViT.forward

    def watched(self, images):
        if self.training:
            seen.append(images[:, 0, 0, 0].clone())
        return forward(self, images)

    monkeypatch.setattr(cv.ViT, "forward", watched)
    images = blobs()
    cv.train(make_vit(), images, images, Recipe(epochs=2, batch=16, augment=False))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, images.images[:, 0, 0, 0].sort().values)
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)


def test_bfloat16_is_used_where_asked_for(monkeypatch):
    kinds, linear = set(), torch.nn.Linear.forward

    def watched(layer, z):
        out = linear(layer, z)
        if layer.training:
            kinds.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    vit, images = make_vit().float(), blobs()
    images = ImageSet(images.images.float(), images.labels, images.class_names)
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        kinds.clear()
        recipe = Recipe(epochs=1, batch=48, mixed_precision=precision)
        result = cv.train(vit, images, images, recipe)
        assert result.vit.positions.dtype == torch.float32
        assert kinds == {dtype}


def test_the_head_alone_is_tuned_where_asked_for(tmp_path):
    vit = make_vit()
    recipe = Recipe(epochs=3, batch=16, tune="head", learning_rate=1e-2, ema_decay=0.5)
    result = cv.train(vit, blobs(), blobs(), recipe)
    trained = result.vit.state_dict()
    same = {name for name, value in vit.state_dict().items() if torch.equal(trained[name], value)}
    assert trained.keys() - same == {"head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in result.vit.parameters())
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    cv.train(vit, blobs(), blobs(), recipe, folder=tmp_path)
    again = cv.train(vit, blobs(), blobs(), recipe, folder=tmp_path)
    assert same_weights(again.vit, result.vit)
    edges = edge_model()
    tuned = cv.train(edges, blobs(), blobs(), recipe).vit.state_dict()
    same = {name for name, value in edges.state_dict().items() if torch.equal(tuned[name], value)}
    assert tuned.keys() - same == {"ends.head.weight", "ends.head.bias"}


# Augmentation


@pytest.mark.parametrize(
    ("degrees", "shift"),
    [(0.0, (2, -1)), (90.0, (0, 0)), (-90.0, (1, 2)), (17.0, (-3, 2)), (-8.0, (0, 1))],
)
def test_each_image_moves_as_torchvision_moves_it(degrees, shift):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 16, 16, generator=generator)
    degrees_of, shift_of = (degrees, 0.0, -degrees), (shift, (0, 0), shift)
    angles = torch.deg2rad(torch.tensor(degrees_of))
    shifts = torch.tensor(shift_of) * 2 / 16
    ours = transformed(images, affine_matrices(angles, shifts, torch.tensor([False, False, False])))
    inside = (..., slice(6, 10), slice(6, 10))  # where nothing comes from outside
    for own, image, angle, places in zip(ours, images, degrees_of, shift_of, strict=True):
        theirs = functional.affine(
            image, angle, list(places), 1.0, [0.0, 0.0], InterpolationMode.BILINEAR
        )
        torch.testing.assert_close(own[inside], theirs[inside], rtol=1e-4, atol=1e-4)


def test_a_mirrored_image_is_flipped_and_its_neighbour_is_not():
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    still = torch.zeros(2)
    ours = transformed(
        images, affine_matrices(still, torch.zeros(2, 2), torch.tensor([True, False]))
    )
    torch.testing.assert_close(ours[0], images[0].flip(-1))
    torch.testing.assert_close(ours[1], images[1])


def test_moves_stay_within_the_recipe_and_use_its_whole_range():
    recipe = Recipe(translate=0.2, rotate=30.0, horizontal_flip=True)
    matrices = random_affines(2000, 10, recipe, torch.Generator().manual_seed(0))
    mirrored = matrices[:, 0, 0] < 0
    assert 850 < mirrored.sum() < 1150
    angles = torch.rad2deg(torch.atan2(-matrices[:, 1, 0], matrices[:, 1, 1]))
    assert 29 < angles.max() <= 30.001
    assert -30.001 <= angles.min() < -29
    back = matrices[:, :, :2]
    shift = -torch.linalg.solve(back, matrices[:, :, 2:])[:, :, 0] * 10 / 2
    torch.testing.assert_close(shift, shift.round(), atol=1e-4, rtol=0)
    assert {*shift.round().int().flatten().tolist()} == {-2, -1, 0, 1, 2}
    straight = random_affines(500, 10, Recipe(), torch.Generator().manual_seed(0))
    assert (straight[:, 0, 0] > 0).all()  # digits must not be mirrored


# What goes wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(epochs=1)}, r"batch of 64 is larger than the 48 training images"),
        ({"validation": blobs(classes=2)}, "different classes"),
        ({"vit": make_vit(classes=3)}, r"4 classes and the model has 3.*classes=4"),
        ({"vit": make_vit(image_size=6)}, r"training images have shape.*expects"),
        ({"vit": make_vit().float()}, r"training images have dtype torch.float64"),
    ],
)
def test_a_training_that_cannot_start_says_why(change, message):
    usual = {
        "vit": make_vit(),
        "training": blobs(),
        "validation": blobs(),
        "recipe": Recipe(epochs=1, batch=16),
    }
    with pytest.raises(CircuitError, match=message):
        cv.train(**(usual | change))


def test_a_recipe_names_every_value_that_is_out_of_range():
    wrong = {
        "epochs": 0, "batch": 1.5, "learning_rate": 0.0, "weight_decay": -1, "rotate": -1,
        "warmup_epochs": math.nan, "label_smoothing": 1.0, "clip": math.inf, "translate": -0.1,
        "seed": -1, "mixed_precision": "fp8", "accumulate": 0, "final_learning_rate": -1,
        "schedule_by": "day", "crop_scale": 0, "rand_augment": -1, "rand_augment_magnitude": 31,
        "noise": -0.1, "erase": 1.1, "mixup": -1, "cutmix": math.nan, "drop_path": 1.0,
        "ema_decay": 1, "patience": 0, "watch": "time", "distill_alpha": 1.5,
        "distill_temperature": 0, "tune": "none", "adapter_width": 0, "augment": 1, "horizontal_flip": "yes", "keep_best": None,
    }  # fmt: skip
    with pytest.raises(CircuitError) as caught:
        Recipe(**wrong)
    for name, value in wrong.items():
        assert f"{name} is {value!r}, expected" in str(caught.value)


def test_a_recipe_is_plain_json():
    recipe = Recipe(epochs=3, horizontal_flip=True)
    assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


# Around it


def test_progress_is_silent_unless_asked_for(capfd):
    cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16))
    assert capfd.readouterr() == ("", "")
    cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 2 of 2" in err
    assert "6/6" in err
