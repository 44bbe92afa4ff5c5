import json
import shutil

import pytest
import torch
from command_line import run
from safetensors.torch import save_file

import circuitvit as cv
from circuitvit.cli.evaluation import distinguishing
from circuitvit.train.adapter import Adapter

SMALL = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 10, "width": 8, "depth": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three untrained models in a tree of folders, and what is none."""
    folder = tmp_path_factory.mktemp("a_place")
    deep = folder / "runs" / "2026-11-21_a_long_name_of_an_experiment_with_its_settings"
    for name, heads in (("tau_0.01", 1), ("tau_0.05", 2), ("tau_0.1", 1)):
        config = cv.ViTConfig(**SMALL, heads=heads, head_width=4, mlp_width=8)
        cv.ViT(config, seed=heads).save_pretrained(deep / name / "model")
    (folder / "empty" / "half").mkdir(parents=True)
    (folder / "empty" / "half" / "config.json").write_text("{}")
    (folder / "bare").mkdir()
    other = cv.ViTConfig(**{**SMALL, "classes": 7}, heads=1, mlp_width=8)
    cv.ViT(other, seed=0).save_pretrained(folder / "seven")
    return folder


def test_models_are_found_below_a_folder_and_called_by_what_tells_them_apart(runs):
    words = ["--auto-find", "runs", "--output-dir", "out", "--limit", 60]
    done = run("evaluate", *words, "--max-parameters", "1e6", cwd=runs)
    assert done.returncode == 0, done.stderr
    report = json.loads((runs / "out" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["tau_0.05", "tau_0.01", "tau_0.1"]
    assert report["baseline"] == "tau_0.05"  # has most MACs
    assert "tau_0.05 against itself" in " ".join(done.stdout.split())
    assert "Accuracy first: tau_0" in done.stdout
    assert "Asked for: at most 1,000,000 parameters." in done.stdout
    assert "Wrote out: report.json, report.md and figure.html." in done.stdout
    assert (runs / "out" / "figure.html").stat().st_size > 1_000_000
    assert report["class_names"] == [str(digit) for digit in range(10)]


def test_the_other_projects_options_are_understood(runs):
    deep = next((runs / "runs").iterdir())
    first, second, third = (deep / f"tau_{tau}" / "model" for tau in ("0.01", "0.05", "0.1"))
    words = ["--model-paths", first, second, "--baseline", third, "--output-dir", "named"]
    done = run("evaluate", *words, "--limit", 60, cwd=runs)
    assert done.returncode == 0, done.stderr
    report = json.loads((runs / "named" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["tau_0.1", "tau_0.01", "tau_0.05"]
    assert report["baseline"] == "tau_0.1"
    words = [first, second, "--baseline", "tau_0.05", "--out", "again"]
    assert run("evaluate", *words, "--limit", 60, cwd=runs).returncode == 0
    assert json.loads((runs / "again" / "report.json").read_text())["baseline"] == "tau_0.05"


def foreign_folder(folder):
    """Another library's model that is no ViT."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "resnet", "architectures": ["ResNet"]}')
    save_file({"conv1.weight": torch.zeros(2, 1, 3, 3)}, folder / "model.safetensors")


def test_limits_are_checked_before_anything_is_loaded():
    done = run("evaluate", "nothing", "--min-accuracy", 90)
    assert done.returncode == 2
    assert "min_accuracy is 90.0, expected a share of top-1 in 0–1" in done.stderr


def test_a_report_is_written_also_where_nothing_is_within_the_limits(runs):
    done = run("evaluate", "--auto-find", "runs", "--out", "o", "--limit", 60,
               "--max-parameters", 1, cwd=runs)  # fmt: skip
    assert done.returncode == 2
    assert "Wrote o: report.json, report.md" in done.stdout
    assert "none of 3 models keeps what was asked for (at most 1 parameters)" in done.stderr
    assert "No model is advised: none of 3 models keeps" in (runs / "o" / "report.md").read_text()


def test_what_is_met_on_the_way_and_is_no_vit_is_left_out_and_said(tmp_path):
    config = cv.ViTConfig(**SMALL, heads=1, head_width=4, mlp_width=8)
    cv.ViT(config, seed=0).save_pretrained(tmp_path / "vit")
    foreign_folder(tmp_path / "resnet")
    done = run("evaluate", "--auto-find", ".", "--out", "report", "--limit", 60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["vit"]
    assert "left out resnet: " in done.stderr
    refused = run("evaluate", "vit", "resnet", "--limit", 60, cwd=tmp_path)
    assert refused.returncode == 2  # it was asked for by name
    shutil.rmtree(tmp_path / "vit")
    shutil.rmtree(tmp_path / "report")
    nothing = run("evaluate", "--auto-find", ".", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "no model could be loaded; left out resnet: " in nothing.stderr


@pytest.mark.parametrize("baseline", ["vit/../resnet", "./resnet", "resnet"])
def test_a_baseline_that_cant_be_loaded_is_refused_also_if_it_was_met_on_the_way(
    tmp_path, baseline
):
    config = cv.ViTConfig(**SMALL, heads=1, head_width=4, mlp_width=8)
    cv.ViT(config, seed=0).save_pretrained(tmp_path / "here" / "vit")
    foreign_folder(tmp_path / "here" / "resnet")
    words = ["--auto-find", tmp_path / "here", "--baseline", baseline, "--limit", 60]
    done = run("evaluate", *words, cwd=tmp_path / "here")
    assert done.returncode == 2
    assert done.stderr.startswith("circuitvit: ")
    assert done.stderr.count("\n") == 1
    assert "resnet" in done.stderr
    assert "left out" not in done.stderr


def test_an_adapter_alone_is_refused_by_what_it_is(tmp_path):
    Adapter(2, "a backbone", (), None, {"narrow": torch.zeros(2)}).save(tmp_path)
    for source in (tmp_path, tmp_path / "adapter.safetensors"):
        done = run("evaluate", source)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "is an adapter, which is no model without its backbone" in done.stderr


def test_a_model_is_one_model_however_its_path_is_written(runs):
    deep = next((runs / "runs").iterdir())
    words = ["--auto-find", "runs", "--baseline", deep / "tau_0.1" / "model", "--out", "absolute"]
    assert run("evaluate", *words, "--limit", 60, cwd=runs).returncode == 0
    report = json.loads((runs / "absolute" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["tau_0.1", "tau_0.01", "tau_0.05"]


def test_long_paths_are_not_cut_in_the_table(runs):
    deep = next((runs / "runs").iterdir())
    done = run("evaluate", deep / "tau_0.01" / "model", deep / "tau_0.1" / "model", "--limit", 60)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.split()]
    assert "tau_0.01" in rows
    assert "tau_0.1" in rows
    assert "…" not in done.stdout


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["runs/a", "runs/a/small"], ["a", "a/small"]),
        (["model", "small"], ["model", "small"]),
        (["/x/y/model"], ["model"]),
        (["/x/a/m", "/y/b/m"], ["x/a", "y/b"]),
        (["m", "/m"], ["m", "/m"]),
        (["timm:vit_tiny", "hf:google/vit"], ["timm:vit_tiny", "hf:google/vit"]),
    ],
)
def test_what_tells_paths_apart(paths, names):
    assert distinguishing(paths) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--auto-find", "bare"], "no models in bare or below. A model's folder holds config.json"),
        (["--auto-find", "empty"], "empty/half has a config.json, but no weights beside it"),
        (["--auto-find", "missing"], "--auto-find is missing, which is no folder"),
        ([], "no models were given"),
        (["seven", "--baseline", "gone"], "there is no baseline gone: it is no folder, and none"),
        (["seven", "--baseline", "bare"], "no model in the folder 'bare'"),
        (["--auto-find", "."], "can't be given the same images: image size, channels and classes"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(runs, words, message):
    done = run("evaluate", *words, cwd=runs)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("circuitvit: ")
    assert done.stderr.count("\n") == 1
