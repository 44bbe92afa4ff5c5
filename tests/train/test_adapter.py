"""Adapters: nothing changes at first, only they and the head learn, and they travel alone."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from killed_training import known
from random_models import SHAPES, agree, random_images, random_vit, shape
from safetensors.torch import load_file, save_file
from small_training import blobs, edge_model, make_vit, same_weights, timeless

import circuitvit as cv
from circuitvit.train import AdaptedViT, Recipe
from circuitvit.train.adapter import body_fingerprint

RECIPE = Recipe(epochs=3, batch=16, tune="adapter", adapter_width=3, learning_rate=1e-2)
RICH = replace(
    RECIPE, accumulate=2, ema_decay=0.7, drop_path=0.4, keep_best=True, rand_augment=1, mixup=0.3
)


def tuned(recipe=RECIPE, **more):
    return cv.train(make_vit(), known(blobs()), known(blobs(seed=1)), recipe, **more)


@pytest.fixture(scope="module")
def training():
    return tuned()


@pytest.mark.parametrize("name", SHAPES)
def test_a_fresh_adapter_changes_no_logit(name):
    vit = random_vit(shape(name))
    images = random_images(vit, 5)
    before = vit.fingerprint()
    adapted = AdaptedViT(vit, 4, class_names=tuple("abcd"), seed=3)
    assert agree(adapted(images), vit(images))
    assert vit.fingerprint() == before
    kept = sum(map(bool, vit.config.heads)) + sum(map(bool, vit.config.mlp_width))
    width, head = vit.config.width, vit.head.weight.numel() + vit.head.bias.numel()
    assert adapted.adapter.parameters == kept * (2 * 4 * width + 4 + width) + head


def test_an_adapter_computes_what_the_paper_says():
    """Against a forward pass by hand: x + write + up(GELU(down(write))) after each sub-layer."""
    vit = random_vit(shape())
    adapted = AdaptedViT(vit, 4, class_names=tuple("abcd"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".adapter." in name:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * drawn)
    weights, images = adapted.adapter.weights, random_images(vit, 3)

    def with_adapter(write, name):
        w = {k: weights[f"{name}.adapter.{k}"] for k in
             ("down.weight", "down.bias", "up.weight", "up.bias")}  # fmt: skip
        hidden = F.gelu(write @ w["down.weight"].T + w["down.bias"])
        return write + hidden @ w["up.weight"].T + w["up.bias"]

    x = vit.embed(images)
    for number, block in enumerate(vit.blocks):
        write = block.attention(block.ln1(x), block.output_bias)
        x = x + with_adapter(write, f"blocks.{number}.attention")
        x = x + with_adapter(block.mlp(block.ln2(x)), f"blocks.{number}.mlp")
    torch.testing.assert_close(adapted(images), vit.read_out(x), rtol=1e-10, atol=1e-10)
    assert (adapted(images) - vit(images)).abs().max() > 0.1


def test_only_adapters_and_the_head_learn(training):
    vit, trained = make_vit(), training.vit
    assert isinstance(trained, AdaptedViT)
    assert not trained.training
    state = {
        name.replace("sublayer.", ""): value
        for name, value in trained.backbone.state_dict().items()
    }
    for name, value in vit.state_dict().items():
        assert torch.equal(state.pop(name), value) == (not name.startswith("head.")), name
    assert len(state) == 2 * 2 * 4
    fresh = AdaptedViT(vit, 3, class_names=tuple("abcd"), seed=0).adapter.weights
    moved = {name for name in state if not torch.equal(state[name], fresh[name])}
    assert moved == set(state)
    assert training.history[-1]["loss"] < training.history[0]["loss"]
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert trained.preprocessing.class_names is None
    assert training.adapter.class_names == tuple("abcd")
    assert tuned(replace(RECIPE, tune="head")).adapter is None


@pytest.mark.parametrize("place", [".", "deep/folder", "own.safetensors"])
def test_a_saved_adapter_gives_the_same_logits_on_its_backbone(training, tmp_path, place):
    images = blobs(seed=3).images
    path = training.adapter.save(tmp_path / place)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    loaded = cv.Adapter.load(tmp_path / place)
    backbone = make_vit().eval()
    before = backbone.fingerprint()
    applied = loaded.apply(backbone)
    assert agree(applied(images), training.vit(images))
    assert not agree(applied(images), backbone(images))
    assert backbone.fingerprint() == before
    assert applied.preprocessing == training.vit.preprocessing == known(blobs()).preprocessing
    assert (loaded.width, loaded.class_names) == (3, tuple("abcd"))
    assert same_weights(applied, training.vit)


def test_the_head_of_the_backbone_does_not_matter_but_everything_else_does(training):
    images = blobs(seed=3).images
    other_head = make_vit(classes=7)
    with torch.no_grad():
        own = make_vit().state_dict()
        for name, parameter in other_head.named_parameters():
            if not name.startswith("head."):
                parameter.copy_(own[name])
    applied = training.adapter.apply(other_head)
    assert agree(applied(images), training.vit(images))
    assert applied.config.classes == 4
    single = training.adapter.apply(make_vit().float())
    torch.testing.assert_close(
        single(images.float()), training.vit(images).float(), rtol=1e-4, atol=1e-4
    )
    with torch.no_grad():
        other_head.positions[0, 0] += 0.1
    with pytest.raises(cv.CircuitError) as refused:
        training.adapter.apply(other_head)
    assert training.adapter.backbone in str(refused.value)
    assert body_fingerprint(other_head) in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_backbone_of_rounded_weights_is_refused_and_one_is_cast_afterwards(training, dtype):
    told = rf"Its weights are {dtype}: load it in float32, apply, then cast\."
    with pytest.raises(cv.CircuitError, match=told):
        training.adapter.apply(make_vit().to(dtype))
    images = blobs(seed=3).images
    cast = training.adapter.apply(make_vit().float()).to(dtype)
    found, expected = cast(images.to(dtype)).double(), training.vit(images)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("what", ["circuit", "linear", "adapted"])
def test_what_is_no_vit_is_refused(training, what, as_users_call):
    model = {"circuit": edge_model, "linear": lambda: torch.nn.Linear(1, 1),
             "adapted": lambda: training.vit}[what]()  # fmt: skip
    with pytest.raises(cv.CircuitError, match=f"got {type(model).__name__}. Give the model that"):
        training.adapter.apply(model)
    with pytest.raises(cv.CircuitError, match=type(model).__name__):
        cv.train(model, blobs(), blobs(), RECIPE)


def test_a_resumed_tuning_ends_with_the_same_adapter_to_the_bit(tmp_path, monkeypatch):
    from circuitvit.train import training as module

    whole = tuned(RICH)
    held, saved = module.TrainingCheckpoint.save, []

    def save_and_stop(self, path):
        held(self, path)
        saved.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.TrainingCheckpoint, "save", save_and_stop)
    for _ in range(RICH.epochs):
        with pytest.raises(KeyboardInterrupt):
            tuned(RICH, folder=tmp_path)
    monkeypatch.setattr(module.TrainingCheckpoint, "save", held)
    again = tuned(RICH, folder=tmp_path)
    assert len(saved) == RICH.epochs
    assert same_weights(again.vit, whole.vit)
    assert same_weights(again.best, whole.best)
    assert timeless(again.history) == timeless(whole.history)
    assert again.best.adapter.backbone == body_fingerprint(make_vit())
    with pytest.raises(cv.CircuitError, match=r"recipe.adapter_width was 3 and is now 5"):
        tuned(replace(RICH, adapter_width=5), folder=tmp_path)


def test_a_dropped_path_drops_its_adapter_too():
    from circuitvit.train.drop_path import DroppedPaths

    vit, images = make_vit(), blobs(16).images
    adapted = AdaptedViT(vit, 4, class_names=tuple("abcd")).train()
    with torch.no_grad():
        for block in adapted.backbone.blocks:
            block.attention.adapter.up.bias += 1
            block.mlp.adapter.up.bias += 1
    recipe = Recipe(batch=16, drop_path=0.9)
    with DroppedPaths(adapted.backbone, recipe) as dropped:
        dropped.factors = torch.zeros(2, 16)  # the last block's, all of them
        logits = adapted(images)
    stream = adapted.backbone.blocks[0](vit.embed(images))
    torch.testing.assert_close(logits, adapted.backbone.read_out(stream))


def test_an_adapted_model_can_be_evaluated_beside_its_backbone(training):
    held_out = blobs(seed=1)
    models = {"backbone": make_vit(), "adapted": training.vit}
    found = cv.evaluate(models, held_out.images, held_out.labels, batches=())
    assert found.top1("adapted") == training.history[-1]["validation_accuracy"]
    assert found.report["adapted"].parameters > found.report["backbone"].parameters
    assert found.report["adapted"].macs > found.report["backbone"].macs
    report = cv.measure(models, held_out.images, held_out.labels, batches=())
    assert report["adapted"].accuracy.top1 == found.top1("adapted")


def test_a_file_that_is_no_whole_adapter_is_refused(training, tmp_path):
    with pytest.raises(cv.CircuitError, match=r"no plain ViT.*model.adapter.save"):
        training.vit.save_pretrained(tmp_path)
    with pytest.raises(cv.CircuitError, match="no adapter at .*there is no such file"):
        cv.Adapter.load(tmp_path)
    path = training.adapter.save(tmp_path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-7], b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(cv.CircuitError, match="is not a whole adapter"):
            cv.Adapter.load(path)
    make_vit().save_pretrained(tmp_path)
    with pytest.raises(cv.CircuitError, match="is not a whole adapter"):
        cv.Adapter.load(tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("x")
    with pytest.raises(cv.CircuitError, match="cannot write"):
        training.adapter.save(tmp_path / "file" / "adapter.safetensors")


def test_a_later_schema_and_altered_weights_are_told(training, tmp_path):
    from safetensors import safe_open

    path = training.adapter.save(tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        del metadata["circuitvit.digest"]  # as an editor would who doesn't know of it
    record, weights = json.loads(metadata["circuitvit.adapter"]), load_file(path)
    later = metadata | {"circuitvit.adapter": json.dumps(record | {"schema": 2})}
    save_file(weights, path, metadata=later)
    with pytest.raises(cv.CircuitError, match=r"of schema 2, this circuitvit reads 1"):
        cv.Adapter.load(path)
    lost = "blocks.0.mlp.adapter.up.bias"
    weights["more"] = weights.pop(lost)
    save_file(weights, path, metadata=metadata)
    with pytest.raises(cv.CircuitError, match=f"{lost} is missing; more is surplus"):
        cv.Adapter.load(path).apply(make_vit())


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": "abc"}, {"class_names": [1, 2, 3]}, {"class_names": ["a"]},
        {"class_names": ["a", "a", "b"]}, {"class_names": None}, {"class_names": []},
        {"width": "4"}, {"width": True}, {"width": 2.5}, {"width": 10**30}, {"width": 0},
        {"backbone": 7}, {"backbone": None}, {"preprocessing": []}, {"schema": "1"},
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_refused(changes, training, tmp_path):
    from safetensors import safe_open

    path = training.adapter.save(tmp_path)
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["circuitvit.adapter"])
    metadata = {"format": "pt", "circuitvit.adapter": json.dumps(record | changes)}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(cv.CircuitError, match="not a whole adapter|is of schema '1'"):
        cv.Adapter.load(path)
