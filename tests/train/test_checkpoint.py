"""Checkpoints: a run that is killed goes on to the very same weights."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_training import known
from safetensors import SafetensorError, safe_open
from small_training import blobs, make_vit, same_weights, timeless

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.files import tensor_files
from circuitvit.train import Recipe, distillation, training
from circuitvit.train.checkpoint import TrainingCheckpoint


class Killed(BaseException):
    """What a kill is to the process that dies."""


@pytest.fixture
def killed_after(monkeypatch):
    """Make training die right after it has written its k-th checkpoint."""

    def arm(epochs: int) -> None:
        save, count = TrainingCheckpoint.save, iter(range(1, 100))

        def dying(self, path: Path) -> None:
            save(self, path)
            if next(count) == epochs:
                raise Killed

        monkeypatch.setattr(TrainingCheckpoint, "save", dying)

    yield arm
    monkeypatch.undo()


def test_a_killed_run_goes_on_to_the_very_same_weights(tmp_path, killed_after, monkeypatch):
    recipe = Recipe(epochs=5, batch=16)
    whole = cv.train(make_vit(), blobs(), blobs(seed=1), recipe)
    killed_after(2)
    with pytest.raises(Killed):
        cv.train(make_vit(), blobs(), blobs(seed=1), recipe, folder=tmp_path)
    monkeypatch.undo()
    torch.manual_seed(99)  # whatever the new process did before must not matter
    epochs = []
    epoch = training._Loop.epoch
    monkeypatch.setattr(
        training._Loop, "epoch", lambda *args: epochs.append(args[1]) or epoch(*args)
    )
    resumed = cv.train(make_vit(), blobs(), blobs(seed=1), recipe, folder=tmp_path)
    assert epochs == [2, 3, 4]
    assert same_weights(resumed.vit, whole.vit)
    assert timeless(resumed.history) == timeless(whole.history)


def test_a_run_killed_while_it_writes_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    recipe, save = Recipe(epochs=3, batch=16), tensor_files.save_file
    calls = iter(range(1, 100))

    def dying(tensors, path, metadata):
        save(tensors, path, metadata)
        if next(calls) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise Killed

    monkeypatch.setattr(tensor_files, "save_file", dying)
    with pytest.raises(Killed):
        cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert len(TrainingCheckpoint.load(tmp_path / "checkpoint.safetensors").history) == 1


def test_a_half_that_a_kill_amid_writing_left_goes_with_the_next_checkpoint(tmp_path):
    half, other = tmp_path / ".checkpoint.safetensors.ab12", tmp_path / ".notes"
    half.write_bytes(b"half")
    other.write_bytes(b"mine")
    cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=1, batch=16), folder=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".notes", "checkpoint.safetensors"]


def test_a_finished_run_comes_back_without_training(tmp_path, monkeypatch):
    recipe = Recipe(epochs=2, batch=16)
    first = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    monkeypatch.delattr(training._Loop, "epoch")
    again = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert same_weights(first.vit, again.vit)
    assert again.history == first.history


def test_a_checkpoint_is_tensors_and_json_of_the_trained_model(tmp_path):
    result = cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=1, batch=16), folder=tmp_path)
    weights = result.vit.state_dict()
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        record = json.loads(file.metadata()["circuitvit.training"])
        assert record["history"] == list(result.history)
        assert record["run"]["recipe.batch"] == 16
        for name, value in weights.items():
            assert torch.equal(file.get_tensor(f"model.{name}"), value)
            assert file.get_tensor(f"optimizer.{name}.exp_avg").shape == value.shape
            assert file.get_tensor(f"optimizer.{name}.step") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(epochs=2, batch=12)}, "recipe.batch was 16 and is now 12"),
        ({"training": blobs(seed=3)}, "training images was"),
        ({"validation": blobs(seed=3)}, "validation images was"),
        ({"vit": make_vit(seed=7)}, "initial weights was"),
        ({"vit": make_vit(mlp_width=12)}, r"config.mlp_width was \[16, 16\] and is now \[12, 12\]"),
    ],
)
def test_a_folder_with_another_training_is_refused(tmp_path, change, message):
    same = {
        "vit": make_vit(),
        "training": blobs(),
        "validation": blobs(seed=1),
        "recipe": Recipe(epochs=2, batch=16),
    }
    cv.train(**same, folder=tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(
        CircuitError, match=rf"another training.*{message}.*[Cc]hoose another folder"
    ):
        cv.train(**(same | change), folder=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path, kept):
    recipe = Recipe(epochs=1, batch=16)
    cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CircuitError, match=r"not a whole training checkpoint.*Delete it"):
        cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)


def test_safetensors_of_another_kind_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(CircuitError, match="not a whole training checkpoint"):
        cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=1, batch=16), folder=tmp_path)


@pytest.mark.parametrize(("poison", "word"), [(math.inf, "loss"), (1e200, "gradient")])
def test_a_loss_or_gradient_that_is_not_finite_says_where_and_keeps_the_checkpoint(
    tmp_path, monkeypatch, poison, word
):
    """48 images in batches of 16: the fifth step is the second one of epoch 2."""
    steps, cross_entropy = iter(range(1, 100)), distillation.F.cross_entropy

    def poisoned(logits, labels, **more):
        loss = cross_entropy(logits, labels, **more)
        if "label_smoothing" not in more or next(steps) != 5:  # accuracy has none
            return loss
        return loss * poison if word == "loss" else loss + poison * (logits - logits.detach()).sum()

    whole = cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=4, batch=16))
    with monkeypatch.context() as patch:
        patch.setattr(distillation.F, "cross_entropy", poisoned)
        with pytest.raises(CircuitError, match=rf"{word} became NaN.* step 2 of 3 in epoch 2\."):
            cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=4, batch=16), folder=tmp_path)
    assert len(TrainingCheckpoint.load(tmp_path / "checkpoint.safetensors").history) == 1
    resumed = cv.train(make_vit(), blobs(), blobs(), Recipe(epochs=4, batch=16), folder=tmp_path)
    assert same_weights(resumed.vit, whole.vit)


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before_and_says_what_to_do(tmp_path, monkeypatch, cause):
    recipe, save = Recipe(epochs=3, batch=16, ema_decay=0.5), tensor_files.save_file
    calls = iter(range(1, 100))

    def full(tensors, path, metadata):
        if next(calls) == 2:
            path.write_bytes(b"half of it")
            raise cause
        save(tensors, path, metadata)

    whole = cv.train(make_vit(), blobs(), blobs(), recipe)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        told = r"after epoch 2: No space left.*epoch 1 is left.*Make room.*run the same again"
        with pytest.raises(CircuitError, match=told):
            cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert len(TrainingCheckpoint.load(tmp_path / "checkpoint.safetensors").history) == 1
    assert same_weights(
        cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path).vit, whole.vit
    )


def test_a_checkpoint_of_before_a_recipe_got_more_fields_is_resumed(tmp_path):
    recipe, file = Recipe(epochs=2, batch=16), tmp_path / "checkpoint.safetensors"
    first = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    now = TrainingCheckpoint.load(file)
    new = {"recipe.mixup", "recipe.patience", "recipe.accumulate"}
    before = {name: value for name, value in now.run.items() if name not in new}
    TrainingCheckpoint(before, now.history, now.tensors).save(file)
    again = cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path)
    assert same_weights(first.vit, again.vit)
    with pytest.raises(CircuitError, match=r"recipe.mixup was 0.0 and is now 0.5"):
        cv.train(
            make_vit(), blobs(), blobs(), Recipe(epochs=2, batch=16, mixup=0.5), folder=tmp_path
        )


SEEN = cv.Preprocessing(mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": replace(SEEN, std=(0.2,))}, r"preprocessing was .*0\.4.* now .*0\.2.*"),
        ({"preprocessing": None}, r"preprocessing was \{.*\} and is now None"),
        (
            {"preprocessing": replace(SEEN, class_names=tuple("abcd"))},
            r"preprocessing's class names was None and is now '\w{16}'",
        ),
        ({"class_names": tuple("abdc")}, r"class names was '\w{16}' and is now '\w{16}'"),
    ],
)
def test_what_the_training_images_are_is_part_of_the_training(tmp_path, change, message):
    recipe, file = Recipe(epochs=1, batch=16), tmp_path / "checkpoint.safetensors"
    images, others = known(blobs()), replace(known(blobs()), **change)
    first = cv.train(make_vit(), images, images, recipe, folder=tmp_path)
    with pytest.raises(CircuitError, match=rf"another training: {message}\. Choose"):
        cv.train(make_vit(), others, others, recipe, folder=tmp_path)
    now = TrainingCheckpoint.load(file)
    before = {n: v for n, v in now.run.items() if "class names" not in n and n != "preprocessing"}
    assert len(before) == len(now.run) - 3
    TrainingCheckpoint(before, now.history, now.tensors).save(file)
    again = cv.train(make_vit(), others, others, recipe, folder=tmp_path)
    assert same_weights(first.vit, again.vit)


def test_a_folder_that_can_not_be_written_to_is_refused_before_any_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(distillation.F, "cross_entropy", lambda *_, **__: pytest.fail("a step"))
    recipe = Recipe(epochs=1, batch=16)
    with pytest.raises(CircuitError, match=r"cannot write .*Name a folder that can be written to"):
        cv.train(make_vit(), blobs(), blobs(), recipe, folder=tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "record",
    [
        [], None, 1, {}, {"schema": 1, "run": [], "history": []},
        {"schema": 1, "run": {}, "history": {}}, {"schema": 1, "run": {}, "history": [1]},
        {"schema": 1, "run": {}, "history": [{"loss": "low"}]}, {"schema": "1", "run": {},
        "history": []}, {"schema": 1, "run": {"a": 10**400}, "history": []},
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_refused(record, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "checkpoint.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"circuitvit.training": json.dumps(record)})
    with pytest.raises(CircuitError, match="not a whole training checkpoint"):
        TrainingCheckpoint.load(path)


@pytest.mark.parametrize("tune", ["all", "head"])
def test_a_model_of_which_nothing_learns_is_refused(tune):
    vit = make_vit().requires_grad_(False)
    with pytest.raises(CircuitError, match=r"no parameter .* is trained: requires_grad is False"):
        cv.train(vit, blobs(), blobs(), Recipe(epochs=1, batch=16, tune=tune))
    vit.head.requires_grad_(True)
    before = vit.patch.weight.detach().clone()
    trained = cv.train(vit, blobs(), blobs(), Recipe(epochs=1, batch=16, tune=tune)).vit
    assert torch.equal(trained.patch.weight, before)
    assert not torch.equal(trained.head.weight, vit.head.weight)
