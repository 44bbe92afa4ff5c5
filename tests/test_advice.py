from dataclasses import replace

import pytest
from test_evaluation import told, untimed

from circuitvit.measure.latency import Latency

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
