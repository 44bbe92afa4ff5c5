"""Training from a model on the command line: adapters, TensorBoard's curves, the gradients' page."""

import pytest
from command_line import run
from small_training import curves

import circuitvit as cv

FEW = ["--classes", 0, "--classes", 1, "--classes", 2, "--limit", 120, "--epochs", 2, "--no-log"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A small model of three digits."""
    folder = tmp_path_factory.mktemp("workplace")
    shape = ["--width", 16, "--depth", 2, "--heads", 2, "--mlp-width", 16]
    done = run("train", "base", *shape, *FEW, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_adapter_is_saved_on_its_own_and_goes_back_into_its_backbone(workplace):
    words = ["train", "tuned", "--start-from", "base", "--tune", "adapter", "--adapter-width", 4]
    words += ["--limit", 150, "--epochs", 2, "--no-log"]
    words += ["--tensorboard", "curves", "--gradient-flow", "pages/flow.html"]
    done = run(*words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "The head is a new one, of 10 classes." in done.stdout
    names = {path.name for path in (workplace / "tuned").iterdir()}
    assert names == {"adapter.safetensors", "checkpoint.safetensors"}
    adapter = cv.Adapter.load(workplace / "tuned")
    assert (adapter.width, len(adapter.class_names)) == (4, 10)
    assert f"{adapter.parameters:,} numbers" in done.stdout
    model = adapter.apply(cv.load_vit(workplace / "base"))
    test = cv.load_splits("digits", limit=150).test
    hits = (model(test.images).argmax(dim=1) == test.labels).float().mean().item()
    assert f"Test accuracy {hits:.2%}" in done.stdout
    page = (workplace / "pages" / "flow.html").read_text()
    assert "Gradient flow" in page
    assert "attention 1" in page
    assert [step for step, _ in curves(workplace / "curves")["loss/training"]] == [1, 2]
    again = run(*words, cwd=workplace)
    assert again.returncode == 0, again.stderr
    assert [step for step, _ in curves(workplace / "curves")["loss/training"]] == [1, 2]


def test_the_head_of_a_model_that_knows_the_classes_is_kept(workplace):
    done = run(
        "train", "headed", "--start-from", "base", "--tune", "head", *FEW, cwd=workplace
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "new" not in done.stdout
    old, new = (cv.load_vit(workplace / name).state_dict() for name in ("base", "headed"))
    changed = {name for name in old if not old[name].equal(new[name])}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.parametrize("tune", ["head", "adapter"])
def test_tuning_needs_a_model_to_start_from(workplace, tune):
    done = run("train", "none", "--tune", tune, *FEW, cwd=workplace)
    assert done.returncode == 2
    assert "Name a trained one with --start-from." in done.stderr
    assert not (workplace / "none").exists()


def test_an_interrupted_training_says_that_it_goes_on(workplace, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cv, "train", stopped)
    done = run("train", "stopped", *FEW, cwd=workplace)
    assert done.returncode == 130
    assert done.stderr == (
        "circuitvit: interrupted; the same command resumes after the last whole epoch.\n"
    )
