"""`experiments/acdc_against_eap.py`: its toy run as a user has it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import circuitvit as cv

HOUSE = Path(__file__).parents[2]
sys.path.insert(0, str(HOUSE / "experiments"))

import acdc_against_eap as experiment  # noqa: E402
import acdc_against_eap_report as reports  # noqa: E402
from study import Study, images_of  # noqa: E402

LEVELS = {"blocks": 3, "heads": 12, "neurons": 192}


def command(out, *more):
    return [
        sys.executable, str(HOUSE / "experiments" / "acdc_against_eap.py"), "--toy",
        "--threads", "1", "--out", str(out), *more,
    ]  # fmt: skip


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOUSE)}


def run(out, *more):
    return subprocess.run(
        command(out, *more), capture_output=True, text=True, env=environment(), check=False
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy")
    done = run(out, "--results", str(out / "copy.json"))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def results(toy):
    return json.loads((toy / "results.json").read_text())


def names():
    settings = {"acdc": ("tau", ("0.01", "0.05", "0.1")), "eap": ("keep", ("0.9", "0.8", "0.7"))}
    return [
        f"{method}_{level}_{knob}_{value}"
        for level in LEVELS
        for method, (knob, values) in settings.items()
        for value in values
    ]


def test_everything_is_searched_compiled_evaluated_and_in_the_table(toy, results):
    assert [n.removeprefix("prune ") for n in results["parts"] if n.startswith("prune ")] == names()
    titles = [line.split(" | ")[0] for line in reports.table(results).splitlines()[2:]]
    assert titles[0] == "| dense"
    assert len(titles) == len(set(titles)) == 19
    rows = results["parts"]["evaluate"]["result"]["rows"]
    for name in names():
        assert (toy / "circuits" / f"{name}.json").exists()
        part = results["parts"][f"prune {name}"]["result"]
        assert (name in rows) == (part["same_as"] is None)
        if part["same_as"] is not None:
            assert part["same_as"] in rows
    assert json.loads((toy / "copy.json").read_text()) == results
    for page in ("report.md", "copy.md"):
        assert (toy / page).read_text() == reports.report(results)
    assert "plotly" in (toy / "tradeoff.html").read_text()
    files = sorted(path.name for path in (toy / "evaluation").iterdir())
    assert files == ["figure.html", "report.json", "report.md"]


def test_the_figure_has_every_model_once_and_random_prunings_beside_them(results):
    rows = results["parts"]["evaluate"]["result"]["rows"]
    points, controls = [], []
    for trace in reports.tradeoff(results).data:
        controlled = trace.name.startswith("random ")
        (controls if controlled else points).extend(zip(trace.x, trace.y, strict=True))
    share = {n: r["macs"] / rows["dense"]["macs"] for n, r in rows.items() if n != "dense"}
    assert sorted(points) == sorted((share[n], rows[n]["top1"]) for n in share)
    beside = [(share[n], reports.control_of(results, n)) for n in share]
    assert sorted(controls) == sorted(pair for pair in beside if pair[1] is not None) != []


def test_what_is_said_of_each_level_counts_every_model_once(results):
    rows = results["parts"]["evaluate"]["result"]["rows"]
    lines = reports.compared(results)
    assert [line.split(":")[0] for line in lines] == [f"* {level}" for level in LEVELS]
    for level, line in zip(LEVELS, lines, strict=True):
        drawn = results["parts"][f"random {level}"]["result"]
        for method, word in (("acdc", "ACDC"), ("eap", "EAP")):
            found = {}
            for name in names():
                part = results["parts"][f"prune {name}"]["result"]
                if name.startswith(f"{method}_{level}_") and part["same_as"] != "dense":
                    top1 = rows[part["same_as"] or name]["top1_beside_random"]
                    found[part["same_as"] or name] = (top1, sorted(drawn[str(part["kept"][level])]))
            above = sum(top1 > values[1] for top1, values in found.values())
            best = sum(top1 >= values[-1] for top1, values in found.values())
            said = f"{word} above the median of random prunings in {above} of {len(found)} models"
            assert (said in line) == bool(found)
            assert (
                found == {}
                or f"no random one above it in {best}" in line.split(said)[1].split(";")[0]
            )


def test_the_saved_models_have_what_the_results_say(toy, results):
    for name in names():
        part = results["parts"][f"prune {name}"]["result"]
        config = cv.ViT.from_pretrained(toy / "models" / name).config
        kept = part["kept"]
        assert list(config.heads) == kept["heads_by_block"]
        assert list(config.mlp_width) == kept["neurons_by_block"]
        assert part["macs"] <= results["parts"]["judge dense"]["result"]["macs"]
        whole = kept["heads"] == 12 and kept["neurons"] == 192
        assert whole == (part["same_as"] == "dense")


def test_eap_keeps_the_share_that_scores_most(toy, results):
    for level, total in LEVELS.items():
        scores = json.loads((toy / "scores" / f"{level}.json").read_text())
        of_level = [n for n in scores if level != "heads" or n.startswith("a")]
        assert len(of_level) == total
        ranked = sorted(of_level, key=lambda name: -abs(scores[name]))
        for ratio in (0.9, 0.8, 0.7):
            count = results["parts"][f"prune eap_{level}_keep_{ratio}"]["result"]["kept"][level]
            best = set(ranked[: round(ratio * total)])
            path = toy / "circuits" / f"eap_{level}_keep_{ratio}.json"
            if level == "neurons":  # widths are snapped up to groups
                assert len(best) <= count < len(best) + 3 * 8
                kept = json.loads(path.read_text())["kept"]["neurons"]
                assert best <= {f"m{b}.n{n}" for b, some in enumerate(kept) for n in some}
                continue
            units = cv.Circuit.load(path).units()
            assert count == len(best)
            assert {name_of(unit, level) for unit in units} - {None} == best


def name_of(unit, level):
    if level == "blocks":
        return f"block{unit[1]}"
    return unit if unit.startswith("a") else None


def test_the_pareto_set_is_that_of_the_figures(toy, results):
    found = results["parts"]["evaluate"]["result"]
    report = json.loads((toy / "evaluation" / "report.json").read_text())
    batch = str(found["batch"])
    points = {
        row["name"]: (row["accuracy"]["top1"], row["latency"][batch]["ratio"])
        for row in report["rows"]
    }
    assert set(points) == set(found["rows"])
    for name, (top1, time) in points.items():
        beaten = any(
            other[0] >= top1 and other[1] <= time and other != (top1, time)
            for other in points.values()
        )
        assert found["rows"][name]["pareto"] == (not beaten)
        assert (name in found["pareto"]) == (not beaten)
        assert found["rows"][name]["top1"] == top1


def test_each_size_has_random_controls_of_that_size(results):
    for name in names():
        part = results["parts"][f"prune {name}"]["result"]
        control = reports.control_of(results, name)
        if part["same_as"] == "dense":
            assert control is None
            continue
        drawn = results["parts"][f"random {part['level']}"]["result"]
        values = drawn[str(part["kept"][part["level"]])]
        assert len(values) == 3
        assert control == sorted(values)[1]
        assert reports.spread_of(results, name) == (min(values), max(values))


def test_the_choice_is_the_cheapest_that_loses_little_on_validation_images(results):
    dense = results["parts"]["judge dense"]["result"]
    judged = [results["parts"][f"prune {name}"]["result"] for name in names()] + [dense]
    good = [j for j in judged if j["validation_top1"] >= dense["validation_top1"] - 0.02]
    assert results["parts"]["choose"]["result"]["macs"] == min(one["macs"] for one in good)


def test_a_finished_run_does_nothing_again(toy):
    before = {p: p.stat().st_mtime_ns for p in (toy / "models").rglob("*") if p.is_file()}
    results = (toy / "results.json").read_bytes()
    report = (toy / "report.md").read_text()
    (toy / "report.md").unlink()
    again = run(toy, "--stages", "train")
    assert again.returncode == 0, again.stderr
    assert (toy / "report.md").read_text() == report  # evaluation is there, whatever was asked for
    assert again.stdout.startswith("Wrote ")  # nothing was made before
    assert (toy / "results.json").read_bytes() == results
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.exhaustive
def test_a_killed_run_goes_on_to_the_same_circuits(toy, results, tmp_path):
    seen = []
    with subprocess.Popen(
        command(tmp_path, "--stages", "train", "optimize"),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
    ) as running:  # fmt: skip
        for line in running.stdout:
            seen.append(line.strip())
            if line.strip().endswith("prune eap_heads_keep_0.9"):
                running.send_signal(signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    half = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert "choose" not in half
    done = run(tmp_path, "--stages", "optimize")
    assert done.returncode == 0, done.stderr
    again = {line.split(": ")[1] for line in done.stdout.splitlines()}
    assert not again & set(half)
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert not any(part["stage"] == "evaluate" for part in parts.values())
    for name, part in parts.items():
        if name != "train dense":  # its history has seconds
            assert part["result"] == results["parts"][name]["result"]


def test_without_a_trained_model_it_says_what_to_do(tmp_path):
    done = run(tmp_path, "--skip-training")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Run that stage first" in done.stderr


def test_other_settings_in_the_same_folder_are_refused(toy):
    before = (toy / "results.json").read_bytes()
    done = run(toy, "--loss", "task", "--analysis-batches", "1")
    assert done.returncode == 2
    assert "loss was 'kl' and is 'task'" in done.stderr
    assert "analysis_batches was 2 and is 1" in done.stderr
    assert (toy / "results.json").read_bytes() == before


class Unseen:
    """Test images that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"the test images' {name} was looked at")


def small_steps(folder, stages, *more, **changes):
    given = experiment.parser_of().parse_args(["--toy", "--epochs", "1", *more])
    settings = experiment.settings_of(given) | {"taus": [0.05], "keep_ratios": [0.8]} | changes
    study = Study("small", settings, folder, stages)
    return experiment.Comparison(study, images_of(study, None, "digits"))


def test_no_test_image_is_looked_at_before_the_last_stage(tmp_path):
    steps = small_steps(tmp_path, ("train", "optimize"))
    object.__setattr__(steps.splits, "test", Unseen())
    steps.optimize()
    assert "choose" in steps.study.results["parts"]
    steps.study.stages = ("evaluate",)
    with pytest.raises(AssertionError, match="was looked at"):
        steps.evaluate()


def test_task_loss_one_method_and_recovery(tmp_path):
    options = ("--loss", "task", "--method", "eap", "--recovery-epochs", "1")
    stages = ("train", "optimize", "evaluate")
    steps = small_steps(tmp_path, stages, *options)
    steps.evaluate()
    results = steps.study.results
    assert results["parts"]["score heads"]["result"]["metric"] == "cross_entropy"
    rows = results["parts"]["evaluate"]["result"]["rows"]
    assert {name.split("_")[0] for name in rows} == {"dense", "eap"}
    assert {"eap_heads_keep_0.8", "eap_heads_keep_0.8_recovered"} <= set(rows)
    shapes = [
        cv.ViT.from_pretrained(tmp_path / "models" / f"eap_heads_keep_0.8{kind}").config
        for kind in ("", "_recovered")
    ]
    assert shapes[0] == shapes[1]
    assert "EAP heads keep 0.8, recovered" in reports.report(results)
    assert reports.control_of(results, "eap_heads_keep_0.8_recovered") is None
