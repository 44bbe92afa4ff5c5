"""The tables of `experiments/budgets.py`, and what its committed results say."""

import json
from pathlib import Path

import numpy as np
import pytest

HOUSE = Path(__file__).parents[2]
RESULTS = HOUSE / "experiments" / "results" / "budgets.json"


@pytest.fixture
def budgets(monkeypatch):
    monkeypatch.syspath_prepend(str(HOUSE / "experiments"))
    import budgets

    return budgets


def row(hits, units="", **more):
    packed = np.packbits(np.array(hits, bool)).tobytes().hex()
    return {
        "right": packed,
        "images": len(hits),
        "units": units,
        "top1": sum(hits) / len(hits),
        **more,
    }


def test_differences_are_paired_image_by_image(budgets):
    one, other = row([1, 1, 1, 0, 1, 0, 0, 1, 1, 1]), row([1, 0, 1, 0, 0, 0, 0, 1, 1, 1])
    change, low, high = budgets.difference(one, other)
    assert change == pytest.approx(0.2)
    assert low == 0
    assert 0.3 <= high <= 0.5
    assert budgets.verdict("weights", change, low, high).endswith("to weights: tie")
    same = row([1] * 100), row([0] * 60 + [1] * 40)
    assert budgets.verdict("x", *budgets.difference(*same)).endswith(": wins")
    assert budgets.verdict("x", *budgets.difference(*same[::-1])).endswith(": loses")


def test_the_table_compares_with_the_best_of_all_others(budgets):
    rows = {
        "test dense": row([1] * 8), "validation dense": row([1] * 8),
        "test 0.5 MACs ours": row([1] * 6 + [0] * 2, "a"), "test 0.5 MACs weights": row([0] * 8),
        "test 0.5 MACs one scan": row([1] * 6 + [0] * 2, "a"),
        "test 0.5 MACs random 0": row([1] * 7 + [0]), "test 0.5 MACs random 1": row([1] + [0] * 7),
    }  # fmt: skip
    text = budgets.tables("x", rows)
    assert (
        "| 0.5 of the MACs | 75.0% | – | 75.0% | – | – | – | – | 0.0% | 50.0% (87.5%) | -12.5"
        in text
    )
    assert "to random 0: " in text
    assert "(same units: one scan)" in text


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_committed_models_keep_their_budgets(name):
    body = json.loads(RESULTS.read_text())["models"].get(name, {"rows": {}})
    for key, found in body["rows"].items():
        part, *rest = key.split(" ")
        assert part in ("test", "validation")
        if rest != ["dense"]:
            share, kind = float(rest[0]), rest[1]
            assert found[f"{kind} share"] <= share + 1e-9
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["right"]), np.uint8))
        assert bits.sum() / found["images"] == pytest.approx(found["top1"], abs=1e-6)
