"""TensorBoard's curves, read back with its own reader."""

import subprocess
import sys

import pytest
from small_training import blobs, curves, make_vit

import circuitvit as cv
from circuitvit.train import Recipe
from circuitvit.train import training as module
from circuitvit.train.epoch_records import CURVES

RECIPE = Recipe(epochs=4, batch=16)


def trained(**more):
    return cv.train(make_vit(), blobs(), blobs(seed=1), RECIPE, **more)


def is_the_history(shown, history):
    assert shown.keys() == set(CURVES.values())
    for name, tag in CURVES.items():
        assert [step for step, _ in shown[tag]] == [entry["epoch"] for entry in history]
        expected = [entry[name] for entry in history]
        assert [value for _, value in shown[tag]] == pytest.approx(expected, rel=1e-6)


def stop_before_saving(monkeypatch, epoch, folder, **more):
    """Run until the curves have an epoch and the checkpoint hasn't, as a kill there would leave it."""
    held = module.TrainingCheckpoint.save

    def save(self, path):
        if len(self.history) == epoch:
            raise KeyboardInterrupt
        held(self, path)

    monkeypatch.setattr(module.TrainingCheckpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        trained(folder=folder, **more)
    monkeypatch.setattr(module.TrainingCheckpoint, "save", held)


def test_the_curves_are_the_history(tmp_path):
    result = trained(tensorboard=tmp_path / "deep" / "curves")
    is_the_history(curves(tmp_path / "deep" / "curves"), result.history)
    assert len(result.history) == 4


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_resumed_training_leaves_no_epoch_twice(epoch, tmp_path, monkeypatch):
    stop_before_saving(monkeypatch, epoch, tmp_path, tensorboard=tmp_path / "curves")
    before = curves(tmp_path / "curves")
    assert [step for step, _ in before["loss/training"]] == list(range(1, epoch + 1))
    result = trained(folder=tmp_path, tensorboard=tmp_path / "curves")
    is_the_history(curves(tmp_path / "curves"), result.history)
    assert len(list((tmp_path / "curves").iterdir())) == 2
    trained(folder=tmp_path, tensorboard=tmp_path / "curves")  # nothing is left to do
    is_the_history(curves(tmp_path / "curves"), result.history)


def test_curves_that_are_asked_for_later_have_the_earlier_epochs_too(tmp_path, monkeypatch):
    stop_before_saving(monkeypatch, 3, tmp_path)
    result = trained(folder=tmp_path, tensorboard=tmp_path / "curves")
    is_the_history(curves(tmp_path / "curves"), result.history)


def test_a_folder_that_can_not_be_written_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module._Loop, "epoch", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(cv.CircuitError, match="cannot write TensorBoard's curves to"):
        trained(tensorboard=tmp_path / "file")


def test_tensorboard_is_imported_only_when_asked_for_and_its_lack_is_told(tmp_path):
    code = (
        "import sys\n"
        "import circuitvit as cv\n"
        "from small_training import blobs, make_vit\n"
        "def trained(**more):\n"
        "    cv.train(make_vit(), blobs(), blobs(), cv.Recipe(epochs=1, batch=16), **more)\n"
        "trained()\n"
        "print('tensorboard' in sys.modules)\n"
        "sys.modules['tensorboard'] = None  # as if it weren't installed\n"
        "try: trained(tensorboard='curves')\n"
        "except cv.CircuitError as told: print(told)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.startswith("False\n"), done.stderr
    assert "pip install 'circuitvit[tensorboard]'" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
