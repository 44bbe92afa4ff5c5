import dataclasses
import json
import math

import pytest
import torch
from random_models import SHAPES, shape
from small_circuits import invented
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import circuitvit as cv
from circuitvit.measure import Cost
from circuitvit.measure.models.cost import call_of, cost_parts, vit_macs


@pytest.mark.parametrize("name", SHAPES)
def test_a_prediction_is_the_sum_of_the_parts_in_the_model(name):
    """The parts are counted on the modules of a real model, not on its config."""
    config = shape(name)
    costs, vit = invented(config), cv.ViT(config)
    ms = {(row.op, row.shape): row.median_ms for row in costs.rows}
    total = ms["embed", ()] + ms["read_out", ()]
    for block in vit.blocks:
        if block.attention is not None:
            total += ms["attention", (block.attention.heads, block.attention.head_width)]
        elif block.output_bias is not None:
            total += ms["addition", ()]
        if block.mlp is not None:
            total += ms["mlp", (block.mlp.fc1.out_features,)]
        total += ms["addition", ()] * (block.attention_constant is not None)
        total += ms["addition", ()] * (block.mlp_constant is not None)
    assert costs.predict(config) == pytest.approx(total, rel=1e-12)


def test_mlp_widths_between_measured_ones_are_interpolated_and_others_refused():
    config = shape(depth=1, mlp_width=10)
    parts = (Cost("embed", (), 1.0), Cost("read_out", (), 2.0), Cost("attention", (2, 4), 4.0))
    costs = cv.Costs(config, 1, (*parts, Cost("mlp", (10,), 30.0), Cost("mlp", (4,), 12.0)))
    for neurons, ms in ((4, 12.0), (5, 15.0), (8, 24.0), (10, 30.0)):
        assert costs.predict(shape(depth=1, mlp_width=neurons)) == pytest.approx(7.0 + ms)
    assert costs.predict(shape(depth=1, mlp_width=0)) == 7.0
    with pytest.raises(
        cv.CircuitError, match=r"no mlp of shape \(3,\); measured are \[\(4,\), \(10,\)\]"
    ):
        costs.predict(shape(depth=1, mlp_width=3))
    with pytest.raises(cv.CircuitError, match=r"no attention of shape \(1, 4\)"):
        costs.predict(shape(depth=1, heads=1, mlp_width=10))
    with pytest.raises(cv.CircuitError, match="another channels, width"):
        costs.predict(shape(channels=3, width=16))


def test_every_part_that_can_be_left_is_measured(tmp_path):
    config = shape("ragged")
    costs = cv.measure_costs(config, batch=3, rounds=3)
    assert {(row.op, row.shape) for row in costs.rows} == {
        ("embed", ()), ("addition", ()), ("read_out", ()), ("attention", (1, 4)),
        ("attention", (1, 3)), ("attention", (2, 3)), ("attention", (3, 3)),
        *(("mlp", (width,)) for width in range(1, 8)),
    }  # fmt: skip
    assert all(0 < row.median_ms < 1e3 and row.iqr_ms >= 0 for row in costs.rows)
    assert (costs.batch, costs.rounds, costs.dtype) == (3, 3, "float32")
    assert costs.machine["threads"] == str(torch.get_num_threads())
    for heads in ((1, 0, 1), (0, 0, 2)):
        assert costs.predict(dataclasses.replace(config, heads=heads)) > 0
    again = cv.Costs.load(costs.save(tmp_path / "costs.json"))
    assert again == costs
    assert len(costs.table()) == len(costs.rows) + 1
    assert "| attention, 2 heads of width 3 |" in costs.markdown()
    assert "3 interleaved rounds" in costs.markdown()
    assert costs._repr_html_().startswith("<table>")


def test_only_the_parts_that_are_needed_are_measured():
    config = shape(depth=2, heads=4, head_width=4, mlp_width=40)
    some = [dataclasses.replace(config, heads=(2, 0)), dataclasses.replace(config, mlp_width=0)]
    costs = cv.measure_costs(config, shapes=some, batch=2, rounds=3, dtype=torch.float64)
    assert {(row.op, row.shape) for row in costs.rows} == {
        part for one in (config, *some) for part in cost_parts(one)
    }
    assert costs.dtype == "float64"
    many = [dataclasses.replace(config, mlp_width=n) for n in range(3, 40)]
    costs = cv.measure_costs(config, shapes=many, batch=2, rounds=3)
    widths = [row.shape[0] for row in costs.rows if row.op == "mlp"]
    assert len(widths) == 9
    assert (widths[0], widths[-1]) == (3, 40)
    for one in many:
        assert costs.predict(one) > 0


@pytest.mark.parametrize("name", SHAPES)
def test_the_timed_calls_do_the_multiplications_of_the_model(name):
    """As torch counts them: parts that did less or more than theirs would not add up."""
    config, counted = shape(name), 0
    for part in cost_parts(config):
        call = call_of(config, part, 3, torch.device("cpu"), torch.float32)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
            call()
        counted += flops.get_total_flops()
    assert counted == 2 * 3 * vit_macs(config)


def test_measuring_leaves_torchs_generator_alone():
    generator = torch.get_rng_state()
    cv.measure_costs(shape(depth=1, heads=1, mlp_width=1, head_width=4), batch=2, rounds=3)
    assert torch.equal(torch.get_rng_state(), generator)


def test_files_that_are_no_tables_are_refused(tmp_path):
    path = invented(shape()).save(tmp_path / "costs.json")
    body = json.loads(path.read_text())
    for change, message in (
        ({"format": "x"}, "is not a table of costs"),
        ({"schema": 2}, "has cost schema 2, this version reads 1"),
        ({"rows": [{"op": "embed"}]}, "is not a whole table of costs"),
        ({"rows": body["rows"] + body["rows"][:1]}, "rows can't stand in a table of costs"),
        ({"config": {}}, "is not a whole table of costs"),
    ):
        path.write_text(json.dumps(body | change))
        with pytest.raises(cv.CircuitError, match=message):
            cv.Costs.load(path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(cv.CircuitError, match="is not a whole table of costs"):
        cv.Costs.load(path)
    with pytest.raises(cv.CircuitError, match="no table of costs at"):
        cv.Costs.load(tmp_path / "missing.json")


def test_bad_input_is_refused_with_the_remedy(as_users_call):
    config = shape()
    for call, message in (
        (lambda: cv.measure_costs(cv.ViT(config)), r"expected measure_costs\(vit.config\)"),
        (lambda: cv.measure_costs(config, batch=0), "batch ≥ 1 and rounds ≥ 3"),
        (lambda: cv.measure_costs(config, rounds=2), "batch ≥ 1 and rounds ≥ 3"),
        (lambda: cv.measure_costs(config, batch="a"), "batch is 'a', expected a whole number"),
        (lambda: cv.measure_costs(config, shapes=[shape(width=16)]), "in heads, neurons and constants only"),
        (lambda: cv.Costs(config, 1, (Cost("head", (), 1.0),)), "1 rows can't stand"),
        (lambda: cv.Costs(config, 1, (Cost("mlp", (), 1.0),)), "1 rows can't stand"),
        (lambda: cv.Costs(config, 1, (Cost("embed", (), math.nan),)), "1 rows can't stand"),
        (lambda: cv.Costs(config, 1, (Cost("embed", (), -1.0),)), "1 rows can't stand"),
    ):  # fmt: skip
        with pytest.raises(cv.CircuitError, match=message):
            call()
