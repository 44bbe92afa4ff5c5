"""The toy run of `experiments/animals_blueprint.py`, and what any study does on a second run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import circuitvit as cv

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAME = "animals_blueprint"


def run(folder, *more, expected=0):
    command = [sys.executable, str(EXPERIMENTS / f"{NAME}.py"), "--toy", "--out", str(folder)]
    done = subprocess.run(
        [*command, "--threads", "1", *more], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expected, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_every_stage_notes_its_parts_with_date_and_seconds(results):
    parts = results["parts"]
    taus = [f"τ={tau:g}" for tau in results["settings"]["taus"]]
    assert list(parts) == [
        "train baseline", *taus, "speeds", "choice",
        "train retrained", "train tuned", "train random", "test",
    ]  # fmt: skip
    assert [part["stage"] for part in parts.values()][-1] == "evaluate"
    assert all(part["seconds"] >= 0 and len(part["date"]) == 10 for part in parts.values())
    assert results["hardware"]["threads"] == "1"


def test_the_choice_is_the_best_on_validation_of_those_that_save_enough(results):
    least, parts = results["settings"]["least_saving"], results["parts"]
    trials = [parts[f"τ={tau:g}"]["result"] for tau in results["settings"]["taus"]]
    fit = [t for t in trials if t["compiled"] and t["macs_saved"] >= least]
    assert parts["choice"]["result"] in fit
    assert parts["choice"]["result"]["validation_top1"] == max(t["validation_top1"] for t in fit)


def test_the_random_blueprint_has_as_many_heads_and_mlps_and_another_shape(folder):
    shapes = {
        name: cv.ViT.from_pretrained(folder / "models" / name).config
        for name in ("retrained", "random")
    }
    one, other = shapes["retrained"], shapes["random"]
    assert sum(one.heads) == sum(other.heads)
    assert sorted(one.mlp_width) == sorted(other.mlp_width)
    assert (one.heads, one.mlp_width) != (other.heads, other.mlp_width)


def test_the_test_figures_are_those_of_the_saved_models(folder, results):
    rows = {row["name"]: row for row in results["parts"]["test"]["result"]}
    settings = results["settings"]
    splits = cv.load_splits(
        "digits", image_size=8, validation=settings["validation"], limit=settings["limit"]
    )
    for name, model in (("baseline", "baseline"), ("blueprint retrained", "retrained")):
        vit = cv.load_vit(folder / "models" / model)
        right = (vit(splits.test.images).argmax(dim=-1) == splits.test.labels).float().mean()
        assert rows[name]["top1"] == pytest.approx(right.item(), abs=1e-6)
    assert rows["baseline"]["top1"] > 0.3  # ten classes: it learnt something


def test_the_report_shows_every_model_and_every_threshold(folder, results):
    report = (folder / "report.md").read_text()
    for row in results["parts"]["test"]["result"]:
        assert f"| {row['name']} |" in report
        assert f"{row['top1']:.2%}" in report
    for tau in results["settings"]["taus"]:
        assert f"\n| {tau:g} |" in report
    assert r"\u03c4=0.01" in (folder / "tau.html").read_text()


def test_a_second_run_does_nothing_again(folder, results):
    report = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    done = run(folder, "--stages", "train")
    assert (folder / "report.md").read_text() == report
    assert json.loads((folder / "results.json").read_text()) == results
    assert ": epoch 1/" not in done.stdout


def test_other_settings_in_the_same_folder_are_refused(folder):
    error = run(folder, "--epochs", "3", expected=2).stderr
    assert "recipe was" in error
    assert "another --out" in error
    assert len(error.strip().splitlines()) == 1


def test_without_a_trained_baseline_the_training_cannot_be_skipped(tmp_path):
    error = run(tmp_path, "--skip-training", expected=2).stderr
    assert "no 'train baseline' yet" in error
    assert "Run that stage first" in error


def test_images_must_be_given_unless_it_is_a_toy(tmp_path):
    command = [sys.executable, str(EXPERIMENTS / f"{NAME}.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--data ../shared/data" in done.stderr


@pytest.mark.exhaustive
def test_a_killed_study_goes_on_and_ends_with_the_same_models(folder, results, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / f"{NAME}.py"), "--toy", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.DEVNULL, env=dict(os.environ)
    )
    while not (tmp_path / "checkpoints" / "retrained").exists():  # in the midst of a training
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(tmp_path)
    again = json.loads((tmp_path / "results.json").read_text())["parts"]
    same = ["top1", "loss", "macs"]
    for one, other in zip(results["parts"]["test"]["result"], again["test"]["result"], strict=True):
        assert [one[key] for key in same] == [other[key] for key in same]
