import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
from evaluated_models import IMAGES, LABELS, told, untimed

import circuitvit as cv
from circuitvit.files import plain_json
from circuitvit.files.records import EVALUATION
from circuitvit.measure.models.evaluation_report import MOST_ROUNDS
from circuitvit.measure.models.latency import Latency, paired_ratio

BATCH, BASE_MS = 8, 100.0


def timed(models, ratios, medians=None):
    """An evaluation whose times are these ratios (value, low, high) to the first model's."""
    found = untimed(models)
    own = {name: BASE_MS * ratios[name][0] for name in models} | (medians or {})
    rows = tuple(
        replace(row, latency={BATCH: latency(own[row.name], *ratios[row.name])})
        for row in found.report.rows
    )
    null = {BATCH: latency(BASE_MS, 1.0, 0.98, 1.02)}
    return replace(found, report=replace(found.report, rows=rows, null=null), batch=BATCH)


def latency(median, ratio, low, high):
    return Latency(BATCH, median, 1.0, median, ratio, low, high, None)


SAME = (1.0, 1.0, 1.0)


def test_costs_follow_the_paired_ratios_also_where_raw_medians_contradict():
    models = {"base": told(39), "a": told(30), "b": told(29)}
    ratios = {"base": SAME, "a": (0.691, 0.68, 0.7), "b": (0.6955, 0.69, 0.71)}
    found = timed(models, ratios, {"a": 71.0, "b": 65.0})
    assert found.cost("a") == pytest.approx(69.1)
    assert found.cost("b") == pytest.approx(69.55)
    assert found.images_per_second("a") == pytest.approx(8 / 0.0691)
    assert found.efficiency("a") == pytest.approx(0.75 / 69.1)
    assert found.dominators("b") == ("a",)
    assert found.pareto() == ("a", "base")
    row = found.as_dict()["rows"][2]
    assert row["milliseconds"] == {BATCH: pytest.approx(69.55)}
    assert row["latency"][BATCH]["median_ms"] == 65.0
    (line,) = [x for x in found.markdown().splitlines() if x.startswith("| b |") and "MACs" not in x
               and "69.55" in x]  # fmt: skip
    assert "0.70 (0.69–0.71)" in line
    drawn = [t for t in found.figure().data if t.xaxis == "x2"]
    assert {round(x, 6) for t in drawn for x in t.x} >= {69.1, 69.55, 100.0}


@pytest.mark.parametrize("overlap", [True, False])
def test_a_tie_in_speed_goes_to_the_more_accurate_and_only_a_tie_is_called_one(overlap):
    models = {"base": told(40), "slower": told(24), "quicker": told(20)}
    high = 0.6 if overlap else 0.54
    found = timed(models, {"base": SAME, "slower": (0.6, 0.55, 0.65), "quicker": (0.5, 0.4, high)})
    fast = found.advice()["Latency first"]
    said = " ".join(fast.reasons)
    assert fast.model == ("slower" if overlap else "quicker")
    assert ("not told apart in speed" in said) == overlap
    assert ("the lowest latency" in said) == (not overlap)
    assert ("quicker took 50 ms against 60" in said) == overlap


@pytest.mark.parametrize("overlap", [True, False])
def test_the_other_aims_name_and_break_ties_alike(overlap):
    models = {"best": told(40), "near": told(39)}
    found = timed(models, {"best": SAME, "near": (0.9, 0.8, 1.1 if overlap else 0.95)})
    advice = found.advice(give=0.05)
    for aim in ("Accuracy first", "Balanced"):
        assert advice[aim].model == ("best" if overlap else "near")
    assert ("not told apart in speed" in " ".join(advice["Balanced"].reasons)) == overlap
    assert "not told apart from it in top-1" in " ".join(advice["Accuracy first"].reasons)


def test_advice_says_that_it_was_chosen_on_the_images_it_is_scored_on():
    found = untimed({"a": told(38), "b": told(10)})
    assert "choose on validation images" in str(found.advice())
    assert "choose on validation images" in found.markdown()


def by_rounds(models, rounds):
    """An evaluation in which each model took so many milliseconds in each round."""
    base = next(iter(models))
    ratios = {name: paired_ratio(rounds[name], rounds[base], seed=0) for name in models}
    found = timed(models, {name: (one.value, one.low, one.high) for name, one in ratios.items()})
    rows = tuple(
        replace(
            row, latency={BATCH: replace(row.latency[BATCH], rounds_ms=tuple(rounds[row.name]))}
        )
        for row in found.report.rows
    )
    return replace(found, report=replace(found.report, rows=rows))


def uneven():
    """A baseline that was disturbed, and two models that were not: 70 and 49 ms a batch."""
    rng = np.random.default_rng(0)
    own = {"base": 100 * rng.uniform(0.6, 1.6, 15), "slow": 70 + rng.normal(0, 0.2, 15)}
    return {name: list(ms) for name, ms in own.items()} | {"quick": [x * 0.7 for x in own["slow"]]}


MODELS = {"base": told(40), "slow": told(37), "quick": told(34)}


def test_models_are_compared_with_each_other_round_by_round():
    found = by_rounds(MODELS, uneven())
    slow, quick = found.ratio("slow"), found.ratio("quick")
    assert quick.high > slow.low  # against the disturbed baseline nothing can be told
    apart = found.ratio("quick", "slow")
    assert (apart.low, apart.value, apart.high) == pytest.approx((0.7, 0.7, 0.7))
    back = found.ratio("slow", "quick")
    assert back.value == pytest.approx(1 / 0.7)
    assert found.is_faster("quick", "slow")
    assert not found.is_faster("slow", "quick")
    assert found.ratio("base", "base").value == 1
    fast = found.advice()["Latency first"]
    assert fast.model == "quick"
    assert "not told apart in speed" not in " ".join(fast.reasons)
    assert "of its time (" in " ".join(fast.reasons)


def test_pairs_without_rounds_have_the_widest_interval_that_the_ratios_allow():
    found = timed(MODELS, {"base": SAME, "slow": (0.7, 0.6, 0.8), "quick": (0.5, 0.4, 0.6)})
    apart = found.ratio("quick", "slow")
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.5 / 0.7, 0.4 / 0.8, 1.0))
    assert not found.has_rounds


def test_what_the_baseline_claims_against_itself_is_no_difference():
    found = by_rounds(MODELS, {"base": [100.0] * 5, "slow": [70.0] * 5, "quick": [69.0] * 5})
    assert found.ratio("quick", "slow").high < 1
    assert not found.is_faster("quick", "slow")  # the null goes down to 0.98
    said = " ".join(found.advice()["Latency first"].reasons)
    assert found.advice()["Latency first"].model == "slow"
    assert "99% to 99% of its time, 95%, paired over rounds" in said


@pytest.mark.parametrize("asked", [{"give": 0.1}, {"min_accuracy": 0.8}])
def test_latency_first_is_the_quickest_that_is_accurate_enough(asked):
    """0.70 was chosen where 0.49 was within the accuracy asked for: their intervals overlapped."""
    ratios = {"base": SAME, "slow": (0.70, 0.60, 0.80), "quick": (0.49, 0.45, 0.65)}
    found = timed(MODELS, ratios)
    fast = found.advice(**asked)["Latency first"]
    assert fast.model == "quick"
    assert "slow is not told apart from it in speed and has 7.5 points more" in " ".join(
        fast.reasons
    )
    assert found.advice()["Latency first"].model == "slow"  # it has more than 2 points more


def test_limits_leave_candidates_out_and_say_so():
    found = by_rounds(MODELS, {"base": [100.0] * 5, "slow": [70.0] * 5, "quick": [49.0] * 5})
    advice = found.advice(max_latency=80, min_accuracy=0.9)
    assert {one.model for one in advice.recommendations} == {"slow"}
    assert advice.limits == "at most 80 ms for a batch of 8, top-1 of at least 90.0%"
    assert f"- Asked for: {advice.limits}." in str(advice)
    assert "only one within the limits" in " ".join(advice["Accuracy first"].reasons)
    assert advice.left_out == (
        "base is left out: 100 ms, max_latency is 80.",
        "quick is left out: top-1 85.00%, min_accuracy is 90.00%.",
    )
    assert "reaches below min_accuracy (90.0%): more images would tell" in str(advice)
    size = found.report["base"].parameters
    assert len(found.advice(max_parameters=size).recommendations) == 3
    assert not found.advice().limits


def test_a_model_is_not_dominated_by_one_beyond_the_limits():
    models = {"big": told(40, work=4), "small": told(30)}
    found = timed(models, {"big": SAME, "small": (1.2, 1.1, 1.3)})
    assert found.dominators("small") == ("big",)
    advice = found.advice(max_parameters=256)
    assert {one.model for one in advice.recommendations} == {"small"}
    assert advice.left_out == ("big is left out: 1,024 parameters, max_parameters is 256.",)


def test_a_time_at_the_limit_is_doubted():
    found = timed({"base": told(40), "a": told(39)}, {"base": SAME, "a": (0.6, 0.5, 0.7)})
    assert "reaches to 70 ms, above max_latency (65 ms): more rounds" in str(
        found.advice(max_latency=65)
    )
    assert "more rounds" not in str(found.advice(max_latency=71))


def test_where_nothing_is_within_the_limits_the_nearest_is_named():
    found = timed(MODELS, {"base": SAME, "slow": (0.7, 0.6, 0.8), "quick": (0.49, 0.45, 0.6)})
    with pytest.raises(cv.CircuitError) as caught:
        found.advice(max_latency=45, min_accuracy=0.8, max_parameters=10_000)
    assert str(caught.value) == (
        "none of 3 models keeps what was asked for (at most 45 ms for a batch of 8, top-1 of at "
        "least 80.0%, at most 10,000 parameters). The nearest is quick: 49 ms, max_latency is 45. "
        "Of all, the most accurate is base (100.0%), the smallest base (256 parameters), the "
        "fastest quick (49 ms). Loosen a limit, or evaluate other models."
    )


def test_a_report_keeps_the_limits_of_its_advice(tmp_path, recwarn):
    found = timed(MODELS, {"base": SAME, "slow": (0.7, 0.6, 0.8), "quick": (0.49, 0.45, 0.6)})
    folder = found.save(tmp_path / "met", max_latency=80, min_accuracy=0.9)
    body = EVALUATION.read(folder / "report.json")
    assert body["limits"] == {"max_latency": 80, "min_accuracy": 0.9}
    assert body["advice"] == plain_json(asdict(found.advice(max_latency=80, min_accuracy=0.9)))
    text = (folder / "report.md").read_text()
    assert text == found.markdown(max_latency=80, min_accuracy=0.9)
    assert "base is left out: 100 ms, max_latency is 80." in text
    none = found.save(tmp_path / "missed", max_latency=45)
    assert EVALUATION.read(none / "report.json")["advice"]["recommendations"] == []
    assert "\n\nNo model is advised: none of 3 models keeps" in (none / "report.md").read_text()
    for saved in (folder, none):
        assert cv.Evaluation.load(saved).names == found.names
    assert [str(w.message) for w in recwarn.list] == []
    for wrong in ({"max_latency": -1}, {"max_size": 3}):
        with pytest.raises(cv.CircuitError, match="max_latency"):
            found.save(tmp_path / "no", **wrong)
    assert not (tmp_path / "no").exists()


def test_limits_out_of_range_are_refused(as_users_call):
    found = untimed({"a": told(38)})
    for limits, message in (
        ({"max_latency": 5}, "max_latency is given, but nothing was timed"),
        ({"max_latency": 0}, "max_latency is 0, expected milliseconds > 0"),
        ({"min_accuracy": 90}, "min_accuracy is 90, expected a share of top-1 in 0–1"),
        (
            {"max_latency": "5", "min_accuracy": None, "max_parameters": 10**400},
            "max_latency is '5', expected milli.*; max_parameters is a number of some 398 digits",
        ),
        ({"min_accuracy": "x"}, "min_accuracy is 'x', expected a share"),
        ({"give": "x"}, "give is 'x', expected a share of top-1 in 0–1"),
        ({"give": None}, "give is None, expected a share"),
        ({"give": float("nan")}, "give is nan, expected a share"),
        (
            {"max_parameters": 0.5, "min_accuracy": -1},
            "min_accuracy is -1.*; max_parameters is 0.5",
        ),
        ({"max_parameters": float("nan")}, "max_parameters is nan"),
        ({"min_accuracy": True}, "min_accuracy is True"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            found.advice(**limits)


def test_rounds_are_measured_saved_and_loaded_and_old_files_load(tmp_path):
    models = {"a": told(38), "b": told(30)}
    found = cv.evaluate(models, IMAGES, LABELS, batches=(2,), rounds=3)
    item = found.report["b"].latency[2]
    assert len(item.rounds_ms) == 3
    assert item.median_ms == pytest.approx(sorted(item.rounds_ms)[1])
    base = found.report["a"].latency[2].rounds_ms
    assert item.ratio == pytest.approx(np.median(np.divide(item.rounds_ms, base)))
    again = cv.Evaluation.load(found.save(tmp_path / "new"))
    assert again.ratio("b", "a") == found.ratio("b", "a")
    assert again.report == found.report
    body = EVALUATION.read(tmp_path / "new" / "report.json")
    whole = copy.deepcopy(body)
    for each in (*(row["latency"] for row in body["rows"]), body["null"]):
        del each["2"]["rounds_ms"]
    body["advice"]["left_out"] = ["as an older version worded it"]
    EVALUATION.write(tmp_path / "old" / "report.json", body)
    old = cv.Evaluation.load(tmp_path / "old")
    assert not old.has_rounds
    assert old.ratio("b") == found.ratio("b")
    body["rows"][0]["latency"]["2"]["rounds_ms"] = [1.0, 0.0, 2.0]
    EVALUATION.write(tmp_path / "bad" / "report.json", body)
    uneven = "rounds_ms of batch 2 are not as many times above 0"
    with pytest.raises(cv.CircuitError, match=uneven):
        cv.Evaluation.load(tmp_path / "bad")
    places = [*(row["latency"] for row in whole["rows"]), whole["null"]]
    own = [place["2"]["rounds_ms"] for place in places]
    places[-1]["2"]["rounds_ms"] = [1.0]
    EVALUATION.write(tmp_path / "null" / "report.json", whole)
    with pytest.raises(cv.CircuitError, match=uneven):
        cv.Evaluation.load(tmp_path / "null")
    for place in places:
        place["2"]["rounds_ms"] = [1.0] * (MOST_ROUNDS + 1)
    EVALUATION.write(tmp_path / "long" / "report.json", whole)
    with pytest.raises(cv.CircuitError, match="rounds_ms of batch 2 are more than 10,000 times"):
        cv.Evaluation.load(tmp_path / "long")
    for place, rounds in zip(places, own, strict=True):
        place["2"]["rounds_ms"] = rounds
    places[1]["2"]["rounds_ms"] = [3 * ms for ms in own[1]]
    EVALUATION.write(tmp_path / "odd" / "report.json", whole)
    with pytest.warns(UserWarning, match="own rounds|computed anew") as warned:
        cv.Evaluation.load(tmp_path / "odd")
    assert any("not the medians of its own rounds (b at batch 2)" in str(w.message) for w in warned)
