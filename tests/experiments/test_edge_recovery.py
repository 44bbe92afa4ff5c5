"""Tests of the toy run of `experiments/edge_recovery.py`, as a real process.

They train many models, so they are part of `make exhaustive`; the other two studies are tried by `make test`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import circuitvit as cv
from circuitvit.measure import accuracy
from circuitvit.pretrained import load_saved

pytestmark = pytest.mark.exhaustive

HOUSE = Path(__file__).parents[2]
EXPERIMENTS = HOUSE / "experiments"
KINDS = ("baseline", "better")
RECOVERED = tuple(
    f"{share}_{word}"
    for share in ("published", "hard")
    for word in ("recovered", "distilled", "random_0_recovered", "random_1_recovered")
)
CONTROLS = tuple(
    f"{share}: {word}"
    for share in ("published", "hard")
    for word in ("2 random, pruned", "random 0, recovered", "random 1, recovered")
)


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "experiments/edge_recovery.py", "--toy", "--epochs", "4"]
    return subprocess.run(
        [*command, "--out", str(folder), *options],
        cwd=HOUSE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )


def stored(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run, in two goes: what stood after the stage `train`, and after all."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    first = run(folder, "--stages", "train")
    assert first.returncode == 0, first.stderr
    trained = folder.with_name("trained.json")
    shutil.copy(folder / "results.json", trained)
    second = run(folder, "--skip-training", "--results", str(folder.with_name("copy.json")))
    assert second.returncode == 0, second.stderr
    return {"folder": folder, "trained": trained, "copy": folder.with_name("copy.json")}


@pytest.fixture(scope="module")
def results(pages: dict[str, Path]) -> dict:
    return stored(pages["folder"])


@pytest.fixture(scope="module")
def reports() -> ModuleType:
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import edge_recovery_report
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return edge_recovery_report


def rows_of(results: dict, kind: str) -> dict:
    return results["parts"][f"evaluation of {kind}"]["result"]["rows"]


def test_the_first_stage_trains_the_two_dense_models_and_no_more(pages):
    parts = json.loads(pages["trained"].read_text())["parts"]
    assert list(parts) == ["train baseline", "train better"]
    histories = [part["result"] for part in parts.values()]
    assert [len(history) for history in histories] == [4, 8]


def test_training_goes_before_pruning_and_test_images_come_last(results):
    parts = results["parts"]
    stages = {name: part["stage"] for name, part in parts.items()}
    for kind in KINDS:
        assert stages[f"circuits of {kind}"] == "optimize"
        assert {stages[f"train {kind}_{name}"] for name in (*RECOVERED, "trained_on")} == {
            "optimize"
        }
    order = [("train", "optimize", "evaluate").index(stage) for stage in stages.values()]
    assert order == sorted(order)
    assert [name for name, stage in stages.items() if stage == "evaluate"] == [
        f"{what} of {kind}" for kind in KINDS for what in ("random circuits", "evaluation")
    ]


def test_the_circuits_have_the_shares_that_were_asked_for(results, pages):
    for kind in KINDS:
        sizes = results["parts"][f"circuits of {kind}"]["result"]
        every = sizes["all edges"]["edges"]
        assert every == sizes["all edges"]["of"] == 3 * 14 + 1 + 25 * 3
        assert sizes["published"]["edges"] == round((1 - 81 / 518) * every)
        assert sizes["hard"]["edges"] == round(results["settings"]["keep"]["hard"] * every)
        assert abs(sizes["acdc"]["edges"] - sizes["published"]["edges"]) < 12
        for name, size in sizes.items():
            path = pages["folder"] / "circuits" / f"{kind}_{name.replace(' ', '_')}.json"
            circuit = cv.Circuit.load(path)
            assert (len(circuit), circuit.qkv) == (size["edges"], "joint")


def test_random_circuits_are_as_large_as_eaps_and_hold_a_path_to_the_logits(results, pages):
    folder = pages["folder"]
    for kind in KINDS:
        for share in ("published", "hard"):
            drawn = [
                cv.Circuit.load(folder / "circuits" / f"{kind}_{share}_random_{draw}.json")
                for draw in range(2)
            ]
            own = cv.Circuit.load(folder / "circuits" / f"{kind}_{share}.json")
            for circuit in drawn:
                assert (len(circuit), circuit.qkv) == (len(own), "joint")
                assert circuit.provenance.method == "random"
                assert circuit.provenance.model == own.provenance.model
                heads = [unit for unit in circuit.units() if unit.startswith("a")]
                assert heads  # only they bring the images to the class token
            assert len({one.edges for one in [own, *drawn]}) == 3
            splits = cv.load_splits("digits", image_size=8, validation=0.1, seed=0)
            untrained = results["parts"][f"random circuits of {kind}"]["result"][share]
            for draw, pruned in enumerate(untrained):
                model = load_saved(folder / "models" / f"{kind}_{share}_random_{draw}_recovered")
                found = accuracy(model, splits.test.images, splits.test.labels)
                row = rows_of(results, kind)[f"{share}: random {draw}, recovered"]
                assert row["top1"] == pytest.approx(found.top1, abs=1e-5)
                assert row["loss"] < pruned["loss"]  # it was trained


def test_noted_figures_are_those_of_the_saved_models(results, pages):
    splits = cv.load_splits("digits", image_size=8, validation=0.1, seed=0)
    names = {"dense": "", "hard: pruned": "_hard_pruned", "hard: recovered": "_hard_recovered"}
    for kind in KINDS:
        for name, ending in names.items():
            model = load_saved(pages["folder"] / "models" / f"{kind}{ending}")
            found = accuracy(model, splits.test.images, splits.test.labels)
            row = rows_of(results, kind)[name]
            assert (row["top1"], row["loss"]) == pytest.approx((found.top1, found.loss), abs=1e-5)


def test_all_edges_compiled_are_the_dense_model_and_recovery_helps(results):
    for kind in KINDS:
        rows = rows_of(results, kind)
        assert rows["all edges"]["loss"] == pytest.approx(rows["dense"]["loss"], abs=1e-4)
        assert rows["hard: recovered"]["loss"] < rows["hard: pruned"]["loss"]
        assert rows["hard: pruned"]["top1"] < rows["dense"]["top1"]
        assert rows["hard: pruned"]["macs"] < rows["all edges"]["macs"]


def test_the_pareto_set_is_that_of_the_rows(results):
    for kind in KINDS:
        found = results["parts"][f"evaluation of {kind}"]["result"]
        rows = found["rows"]

        def beaten(one: dict, rows: dict = rows) -> bool:
            mine = (-one["top1"], one["seconds"])
            others = [(-other["top1"], other["seconds"]) for other in rows.values()]
            return any(o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in others)

        assert {name for name, row in rows.items() if not beaten(row)} == set(found["pareto"])
        assert {name for name, row in rows.items() if row["pareto"]} == set(found["pareto"])


def test_the_report_has_every_model_and_both_controls(results, pages, reports):
    text = (pages["folder"] / "report.md").read_text()
    assert text == reports.report(results)
    for kind in KINDS:
        lines = reports.table(results, kind).splitlines()
        names = [line.split(" | ")[0].strip("| ") for line in lines[2:]]
        for name in ("dense, trained on", "acdc: pruned", *CONTROLS):
            assert names.count(name) == 1
        assert set(rows_of(results, kind)) <= set(names)
        assert "\n".join(lines) in text
        assert (pages["folder"] / "evaluation" / kind / "figure.html").exists()
    start, pruned = (rows_of(results, "better")[name]["top1"] for name in ("dense", "hard: pruned"))
    line = next(row for row in text.splitlines() if row.startswith("| better, 80% gone"))
    assert f"| {start:.2%} | {100 * (pruned - start):+.2f} |" in line
    rows, drawn = (
        rows_of(results, "better"),
        results["parts"]["random circuits of better"]["result"],
    )
    before = [one["top1"] for one in drawn["hard"]]
    after = [rows[f"hard: random {draw}, recovered"]["top1"] for draw in range(2)]
    lost = [100 * (one - start) for one in before]
    back = [100 * (later - one) for later, one in zip(after, before, strict=True)]
    for some in (lost, back):
        assert f"| {sum(some) / 2:+.2f} ({min(some):+.1f} to {max(some):+.1f}) |" in line
    assert "| published, 200 classes | 81 of 518 | 36.25% | -3.25 | +3.07 |" in text
    assert json.loads(pages["copy"].read_text()) == results
    assert pages["copy"].with_suffix(".md").read_text() == text


def test_a_second_run_does_nothing_again(results, pages):
    report = (pages["folder"] / "report.md").read_text()
    (pages["folder"] / "report.md").unlink()
    again = run(pages["folder"], "--stages", "train")
    assert again.returncode == 0, again.stderr
    assert (pages["folder"] / "report.md").read_text() == report
    assert again.stdout.startswith("Wrote ")  # nothing was made before
    assert stored(pages["folder"]) == results


def test_a_lost_last_part_is_made_again_from_what_is_there(results, pages, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(pages["folder"], folder)
    parts = results["parts"]
    lost = [
        "train better_hard_random_1_recovered",
        *[n for n in parts if parts[n]["stage"] == "evaluate"],
    ]
    kept = {name: part for name, part in parts.items() if name not in lost}
    (folder / "results.json").write_text(json.dumps(results | {"parts": kept}))
    shutil.rmtree(folder / "models" / "better_hard_random_1_recovered")
    again = run(folder, "--stages", "optimize")
    assert again.returncode == 0, again.stderr
    remade = stored(folder)["parts"]
    assert list(remade) == [*kept, lost[0]]
    assert remade[lost[0]]["result"] == parts[lost[0]]["result"]  # from its checkpoint


def test_a_stage_without_the_one_before_says_what_to_do(tmp_path):
    found = run(tmp_path / "empty", "--skip-training")
    assert found.returncode == 2
    assert "has no 'train baseline' yet, which the stage 'train' makes" in found.stderr
    assert "Run that stage first." in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_other_settings_in_the_same_folder_are_refused(pages, results):
    found = run(pages["folder"], "--epochs", "5")
    assert found.returncode == 2
    assert "epochs was 4 and is 5" in found.stderr
    assert stored(pages["folder"]) == results
