"""Distillation: against the formula by hand, and teachers that can't teach."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_training import blobs, make_vit, same_weights
from torch import nn

import circuitvit as cv
from circuitvit.train import Recipe
from circuitvit.train.checkpoint import TrainingCheckpoint
from circuitvit.train.distillation import Teacher, training_loss

ONE_STEP = Recipe(epochs=1, batch=16, augment=False, distill_alpha=0.3, distill_temperature=4.0)


def by_hand(student, teacher, labels, alpha, temperature, smoothing):
    """α · CE + (1 − α) · T² · Σ t (log t − log s), image by image and class by class."""
    total = 0.0
    for own, taught, label in zip(student, teacher, labels.tolist(), strict=True):
        log_p = (own.exp() / own.exp().sum()).log()
        entropy = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
        s = (own / temperature).exp() / (own / temperature).exp().sum()
        t = (taught / temperature).exp() / (taught / temperature).exp().sum()
        distance = sum(t[c] * (t[c].log() - s[c].log()) for c in range(len(t)))
        total = total + alpha * entropy + (1 - alpha) * temperature**2 * distance
    return total / len(labels)


def test_the_loss_is_that_of_the_formula():
    vit, teacher, images = make_vit(), make_vit(seed=3, width=16), blobs(16)
    result = cv.train(vit, images, images, ONE_STEP, teacher=teacher)
    student, taught = vit(images.images), teacher(images.images)
    expected = by_hand(student, taught, images.labels, 0.3, 4.0, 0.1)
    assert result.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-9)


def test_a_student_comes_closer_to_a_teacher_that_says_other_than_the_labels():
    teacher = make_vit(seed=3, width=16)
    with torch.no_grad():
        teacher.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    recipe = replace(ONE_STEP, epochs=40, distill_alpha=0.0, learning_rate=1e-2)
    result = cv.train(make_vit(width=16), blobs(), blobs(seed=1), recipe, teacher=teacher)
    held_out = blobs(seed=1).images
    agree = result.vit(held_out).argmax(dim=1) == teacher(held_out).argmax(dim=1)
    assert agree.double().mean() > 0.8
    assert result.history[-1]["loss"] < 0.2 * result.history[0]["loss"]


def test_a_share_of_one_is_training_without_a_teacher():
    recipe = replace(ONE_STEP, epochs=2, distill_alpha=1.0)
    plain = cv.train(make_vit(), blobs(), blobs(), recipe)
    taught = cv.train(make_vit(), blobs(), blobs(), recipe, teacher=make_vit(seed=3))
    assert same_weights(plain.vit, taught.vit)


class Foreign(nn.Module):
    """As of transformers: says more than logits; in another precision, and in training mode."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 4)).train()

    def forward(self, images):
        return SimpleNamespace(logits=self.inner(images))


def test_any_module_can_teach_and_is_left_as_it_is():
    teacher = Foreign()
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    recipe = replace(ONE_STEP, epochs=2, mixup=0.4, augment=True, accumulate=2)
    runs = [cv.train(make_vit(), blobs(), blobs(), recipe, teacher=teacher) for _ in range(2)]
    assert same_weights(runs[0].vit, runs[1].vit)  # no dropout
    assert all(torch.equal(t, before[n]) for n, t in teacher.state_dict().items())
    assert all(module.training for module in teacher.inner)
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_half_precision_is_softened_in_single():
    logits, taught = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    recipe = Recipe(distill_alpha=0.0, distill_temperature=4.0)
    found = training_loss(logits, torch.zeros(5).long(), taught, recipe)
    expected = training_loss(logits.double(), torch.zeros(5).long(), taught.double(), recipe)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def seen(mean, names=None):
    return cv.Preprocessing(mean=(mean,), std=(0.5,), class_names=names)


def teacher_with(preprocessing):
    teacher = make_vit(seed=3)
    teacher.preprocessing = preprocessing
    return teacher


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (make_vit(classes=7), r"teacher .* \(1, 7\) for one image, expected logits \(1, 4\)"),
        (teacher_with(seen(0.5, ("x", "b", "c", "d"))), r"other classes \(x, b, c and 1 more\)"),
        (teacher_with(seen(0.2)), r"normalised with mean \(0.2,\).*teacher's preprocessing"),
        (make_vit(image_size=8), r"teacher can.t process the training images .*expects"),
        (nn.Linear(3, 4).double(), r"teacher can.t process the training images"),
    ],
)
def test_a_teacher_of_something_else_is_refused(teacher, message):
    images = replace(blobs(), preprocessing=seen(0.5))
    with pytest.raises(cv.CircuitError, match=rf"training can't start.*{message}"):
        cv.train(make_vit(), images, images, ONE_STEP, teacher=teacher)


def test_the_name_of_a_model_is_not_a_teacher(as_users_call):
    with pytest.raises(cv.CircuitError, match=r"teacher is a str, expected a module; load_vit"):
        cv.train(make_vit(), blobs(), blobs(), ONE_STEP, teacher="timm:vit")


def test_a_run_is_not_resumed_with_another_teacher(tmp_path):
    usual = make_vit(), blobs(), blobs(), ONE_STEP
    cv.train(*usual, folder=tmp_path, teacher=make_vit(seed=3))
    cv.train(*usual, folder=tmp_path, teacher=make_vit(seed=3))
    with pytest.raises(cv.CircuitError, match=r"teacher was '\w{16}' and is now '\w{16}'"):
        cv.train(*usual, folder=tmp_path, teacher=make_vit(seed=4))
    with pytest.raises(cv.CircuitError, match=r"teacher was '\w{16}' and is now None"):
        cv.train(*usual, folder=tmp_path)


def test_a_teacher_of_the_same_weights_and_another_config_is_another(tmp_path):
    usual = make_vit(), blobs(), blobs(), ONE_STEP
    one, other = make_vit(seed=3, heads=2), make_vit(heads=4)
    other.load_state_dict(one.state_dict())
    assert not torch.equal(one(blobs().images), other(blobs().images))
    first = cv.train(*usual, folder=tmp_path, teacher=one)
    told = r"another training: teacher.head_width was .*; teacher.heads was \[2, 2\] and is now"
    with pytest.raises(cv.CircuitError, match=told):
        cv.train(*usual, folder=tmp_path, teacher=other)
    file = tmp_path / "checkpoint.safetensors"
    now = TrainingCheckpoint.load(file)
    before = {n: v for n, v in now.run.items() if not n.startswith("teacher.")}
    assert "teacher" in before
    assert len(before) < len(now.run)
    TrainingCheckpoint(before, now.history, now.tensors).save(file)
    again = cv.train(*usual, folder=tmp_path, teacher=one)
    assert same_weights(first.vit, again.vit)


def test_the_config_of_a_foreign_teacher_tells_the_computation_and_not_the_origin():
    import transformers

    def config(**more):
        asked = transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2,
            intermediate_size=16, **more,
        )  # fmt: skip
        return Teacher(transformers.ViTForImageClassification(asked), torch.zeros(1)).config()

    found = config(name_or_path="here", architectures=["A"])
    assert found == config(name_or_path="there", dtype="float16")
    assert found["num_attention_heads"] == 2
    assert found != config(layer_norm_eps=1e-3)
    assert Teacher(Foreign(), torch.zeros(1)).config() == {}


def test_fingerprints_of_teachers_tell_weights_apart():
    like = torch.zeros(1)
    prints = [Teacher(make_vit(seed=seed), like).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_loss_of_logits_in_half_precision_is_computed_in_single(half):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 10, generator=generator).to(half) for _ in range(2))
    labels = torch.arange(8)
    for taught in (None, teacher):
        loss = training_loss(student, labels, taught, ONE_STEP)
        whole = training_loss(
            student.float(), labels, None if taught is None else taught.float(), ONE_STEP
        )
        assert loss.dtype == torch.float32
        assert torch.equal(loss, whole)
