"""What the experiments share: `experiments/study.py`, in this process, without a whole toy run."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import random_models

import circuitvit as cv
from circuitvit.errors import CircuitError

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import acdc_against_eap
import animals_blueprint
import study as studies
from acdc_against_eap_search import Search
from study import Study, origins

SETTINGS = {"seed": 0, "epochs": 1}
STAGES = ("train", "optimize", "evaluate")


def begun(folder, settings=SETTINGS):
    return Study("small", settings, folder, STAGES)


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def splits_of(seed=0):
    return cv.load_splits("digits", image_size=8, validation=0.1, seed=seed, limit=40)


def called(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["small.py", *words])


def test_each_part_keeps_the_command_and_hardware_that_made_it(tmp_path, monkeypatch):
    called(monkeypatch, "--threads", "1")
    begun(tmp_path).part("first", "train", lambda: 1)
    called(monkeypatch, "--threads", "2")
    monkeypatch.setattr(studies, "hardware", lambda device: {"processor": f"another {device.type}"})
    begun(tmp_path).part("second", "train", lambda: 2)
    found = stored(tmp_path)
    first, second = (found["parts"][name] for name in ("first", "second"))
    assert first["command"] == "python experiments/small.py --threads 1"
    assert set(first["hardware"]) == {"device", "threads", "torch", "circuitvit", "processor"}
    assert second["command"] == found["command"] == "python experiments/small.py --threads 2"
    assert second["hardware"] == found["hardware"]
    assert second["hardware"]["processor"].startswith("another c")
    lines = origins(found).splitlines()
    assert [line.rsplit(": ")[-1] for line in lines] == ["first", "second"]
    assert "processor another c" in lines[1]


def test_places_beside_the_project_are_named_from_its_folder(monkeypatch):
    house = Path(__file__).parents[2]
    called(monkeypatch, "--data", str(house.parent / "data"), "--out", str(house / "runs" / "x"))
    assert studies.command() == "python experiments/small.py --data ../data --out runs/x"
    called(monkeypatch, "--data", "/elsewhere/data", "--set", "animals")
    assert studies.command() == "python experiments/small.py --data /elsewhere/data --set animals"


def test_a_run_that_makes_nothing_leaves_the_file_as_it_is(tmp_path, monkeypatch):
    called(monkeypatch, "--threads", "1")
    begun(tmp_path).part("first", "train", lambda: 1)
    before = stored(tmp_path)
    called(monkeypatch, "--skip-training")
    again = begun(tmp_path)
    assert again.part("first", "train", lambda: 2) == 1
    again.save()
    assert stored(tmp_path) == before


def test_a_file_from_before_goes_on(tmp_path, monkeypatch):
    """It has `data` in its settings, no fingerprints of images, and one hardware for all."""
    hardware = {"device": "x86_64", "threads": "1"}
    part = {"stage": "train", "date": "2026-11-21", "seconds": 3.0, "result": 7}
    old = {"settings": SETTINGS | {"data": "../shared/data"}, "parts": {"old": part}}
    old |= {"experiment": "small", "command": "python before", "hardware": hardware}
    (tmp_path / "results.json").write_text(json.dumps(old))
    called(monkeypatch)
    study, splits = begun(tmp_path), splits_of()
    study.check_images(splits)
    assert study.part("old", "train", lambda: 8) == 7
    study.part("new", "train", lambda: 9)
    found = stored(tmp_path)
    assert found["settings"] == SETTINGS
    assert found["parts"]["old"] == part | {"command": "python before", "hardware": hardware}
    assert found["images"] == {
        name: getattr(splits, name).fingerprint() for name in ("train", "validation", "test")
    }


def test_other_images_under_the_same_settings_are_refused(tmp_path):
    study = begun(tmp_path)
    study.check_images(splits_of())
    study.save()
    begun(tmp_path).check_images(splits_of())  # the same, loaded again
    with pytest.raises(CircuitError, match="other images: those of train had the fingerprint") as e:
        begun(tmp_path).check_images(replace(splits_of(), train=splits_of(seed=1).train))
    assert "validation" not in str(e.value)
    assert "another --out" in str(e.value)


def test_the_seconds_of_a_training_are_those_of_its_epochs_in_the_file_too(tmp_path):
    splits = splits_of()
    vit = cv.ViT(
        cv.ViTConfig(
            image_size=8, channels=1, classes=10, patch_size=4, width=8, depth=1, heads=2,
            mlp_width=8,
        )
    )  # fmt: skip
    recipe = cv.Recipe(epochs=2, batch=16)
    begun(tmp_path).trained("small", lambda: vit, splits, recipe)
    part = stored(tmp_path)["parts"]["train small"]
    spent = sum(epoch["seconds"] for epoch in part["result"])
    assert part["seconds"] == round(spent, 1)
    found = stored(tmp_path)
    found["parts"]["train small"]["seconds"] = 1e4  # of the last run alone
    (tmp_path / "results.json").write_text(json.dumps(found))
    begun(tmp_path).trained("small", lambda: vit, splits, recipe)
    assert stored(tmp_path)["parts"]["train small"]["seconds"] == round(spent, 1)


def test_a_shape_without_another_has_no_random_one():
    whole = random_models.shape(depth=2)
    bare = replace(whole, heads=(0, 0), mlp_width=(0, 0))
    with pytest.raises(
        CircuitError, match="found 0 of the 1 other shapes with 0 heads and 0 MLPs"
    ) as e:
        animals_blueprint.random_blueprints(bare, whole, 1, seed=0)
    assert "--random-blueprints 0" in str(e.value)
    assert animals_blueprint.random_blueprints(bare, whole, 0, seed=0) == []


def test_random_shapes_differ_and_the_first_is_the_same_however_many():
    whole = random_models.shape(depth=3)
    like = replace(whole, heads=(1, 0, 2), mlp_width=(whole.mlp_width[0], 0, 0))
    drawn = animals_blueprint.random_blueprints(like, whole, 4, seed=0)
    shapes = {(one.heads, one.mlp_width) for one in [like, *drawn]}
    assert len(shapes) == 5
    assert {sum(heads) for heads, _ in shapes} == {3}
    assert {sum(width > 0 for width in widths) for _, widths in shapes} == {1}
    assert animals_blueprint.random_blueprints(like, whole, 1, seed=0) == drawn[:1]


def test_a_circuit_of_another_model_is_refused(tmp_path):
    vit, other = (random_models.random_vit(random_models.shape(), seed=seed) for seed in (0, 1))
    images = random_models.random_images(vit, 4)
    circuit = cv.acdc(vit, cv.Pairs(clean=images), tau=0.01, ablation="zero")
    circuit.save(tmp_path / "circuit.json")
    assert studies.circuit_of(tmp_path / "circuit.json", vit).edges == circuit.edges
    with pytest.raises(
        CircuitError, match=rf"another model \(fingerprint {vit.fingerprint()}, here"
    ) as error:
        studies.circuit_of(tmp_path / "circuit.json", other)
    assert "to search anew here, remove" in str(error.value)


def test_what_was_found_on_another_model_or_other_images_is_refused(tmp_path):
    given = acdc_against_eap.parser_of().parse_args(["--toy", "--epochs", "1", "--method", "acdc"])
    settings = acdc_against_eap.settings_of(given) | {"taus": [0.05]}
    study = begun(tmp_path, settings)
    steps = acdc_against_eap.Comparison(study, studies.images_of(study, None, "digits"))
    search, other = steps.search, cv.ViT(steps.dense.config, seed=9)
    for level in ("heads", "neurons"):
        wanted = next(one for one in steps.every if one.level == level)
        if level == "neurons":
            search.score(level)
        found = search.found(wanted)
        assert search.found(wanted) == found  # read again
        path = tmp_path / "circuits" / f"{wanted.name}.json"
        message = rf"{path.name} was found on another model .*{search.vit.fingerprint()}, here"
        with pytest.raises(CircuitError, match=message):
            Search(steps.study, other, steps.splits.train).found(wanted)
        with pytest.raises(CircuitError, match="was found on other image pairs"):
            Search(steps.study, steps.dense, steps.splits.test).found(wanted)


def test_a_folder_of_another_experiment_is_refused_by_its_name(tmp_path):
    begun(tmp_path).save()
    with pytest.raises(CircuitError, match=r"holds another experiment, small\. Give another --out"):
        Study("large", SETTINGS, tmp_path, STAGES)


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        (animals_blueprint, ["--epochs", "0"], "--epochs: 0 is less than 1"),
        (animals_blueprint, ["--threads", "-4"], "--threads: -4 is less than 1"),
        (acdc_against_eap, ["--epochs", "few"], "--epochs: invalid whole_number value: 'few'"),
        (acdc_against_eap, ["--limit", "0"], "--limit: 0 is less than 1"),
        (acdc_against_eap, ["--analysis-batches", "0"], "--analysis-batches: 0 is less than 1"),
        (acdc_against_eap, ["--recovery-epochs", "-1"], "--recovery-epochs: -1 is less than 0"),
    ],
)
def test_wrong_numbers_are_refused_at_once(module, words, told, monkeypatch, capsys):
    called(monkeypatch, "--toy", *words)
    build = getattr(module, "parser_of", lambda: studies.options("About.", "small"))
    with pytest.raises(SystemExit) as stopped:
        studies.run(lambda given: pytest.fail("it ran"), build())
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_an_interrupted_study_says_that_it_goes_on(monkeypatch, capsys):
    def main(given):
        raise KeyboardInterrupt

    called(monkeypatch, "--toy")
    with pytest.raises(SystemExit) as stopped:
        studies.run(main, studies.options("About.", "small"))
    assert stopped.value.code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_options_that_leave_no_stage_are_refused(monkeypatch, capsys):
    called(monkeypatch, "--stages", "train", "--skip-training")
    with pytest.raises(SystemExit) as stopped:
        studies.run(studies.stages_of, studies.options("About.", "small"))
    assert stopped.value.code == 2
    assert "leave no stage" in capsys.readouterr().err


def test_an_interrupted_script_says_so_in_one_line():
    folder = Path(__file__).parents[2] / "experiments"
    scripts = [path for path in folder.glob("*.py") if "__main__" in path.read_text()]
    assert len(scripts) > 8
    for script in scripts:
        imports = [n for n in ast.parse(script.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]  # fmt: skip
        assert [name.name for name in imports[0].names] == ["quiet_interrupt"], script.name
    done = subprocess.run(
        [sys.executable, "-c", "import quiet_interrupt; raise KeyboardInterrupt"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "interrupted\n"
    assert done.returncode != 0
