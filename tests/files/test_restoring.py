"""A hostile value in any field of a file is refused, or it can be saved and loaded again."""

import json
import random
import warnings
from collections.abc import Mapping
from dataclasses import make_dataclass

import hostile
import pytest
from public_things import made, same
from random_models import shape

import circuitvit as cv
from circuitvit.files.restoring import UnfitError, restored

QUICK = ["scores", "circuit", "overlap", "completeness", "minimality", "across ablations", "report",
         "costs", "savings"]  # fmt: skip
INSIDE = {"overlap": "overlap", "savings": "savings", "report": "report"}
CASES = 60


@pytest.fixture(scope="module", params=QUICK)
def saved(request, tmp_path_factory):
    """A thing, and the JSON file of it."""
    place = made(request.param).save(tmp_path_factory.mktemp("saved") / "thing.json")
    return made(request.param), (
        place / f"{INSIDE[request.param]}.json" if place.is_dir() else place
    )


def test_a_hostile_value_is_refused_or_can_be_saved_again(saved, tmp_path, as_users_call):
    thing, file = saved
    body = json.loads(file.read_text())
    cases = [(place, value) for place in hostile.places(body) for value in hostile.VALUES]
    for place, value in random.Random(14).sample(cases, CASES):
        path = tmp_path / "altered.json"
        hostile.write(path, hostile.altered(body, place, value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = type(thing).load(path)
            except cv.CircuitError as refused:
                text = str(refused)
                assert len(text) < 3000, (place, value)
                assert "\x1b" not in text, (place, value)
                text.encode()
                continue
            again = found.save(tmp_path / "again")
            assert same(type(thing).load(again), found), (place, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"source": "embed", "score": 1.0}, "target is missing"),
        ([{"source": "embed", "target": "logits", "score": "much"}], "score is 'much', expected a"),
        ([{"source": ["embed"], "target": "logits"}], r"source is \['embed'\], expected a text"),
        ("edges", "graph.edges is 'edges', expected a list"),
        ([{"source": "embed", "target": "logits"}] * 2, "an edge is there twice"),
        ([{"source": "embed", "target": "m7"}], "its nodes aren't those of its edges"),
        ([{"source": "embed", "target": "logits", "score": float("nan")}], "a finite number|NaN"),
    ],
)
def test_the_edges_of_a_circuits_file_are_typed(value, message, tmp_path):
    path = cv.Circuit(cv.ViTConfig(**SHAPE), ["embed->logits"]).save(tmp_path / "circuit.json")
    body = json.loads(path.read_text())
    wanted = [value] if isinstance(value, dict) else value
    hostile.write(path, hostile.altered(body, ("graph", "edges"), wanted))
    with pytest.raises(cv.CircuitError, match=message):
        cv.Circuit.load(path)


SHAPE = dict(image_size=8, patch_size=4, width=8, heads=2, depth=1, classes=3)


def test_a_circuit_of_a_graph_that_is_too_large_is_refused_at_once(tmp_path, as_users_call):
    path = cv.Circuit(cv.ViTConfig(**SHAPE), ["embed->logits"]).save(tmp_path / "circuit.json")
    body = json.loads(path.read_text())
    for heads, message in (
        ([30_000] * 2, "edges with qkv"),
        ([10**8], "at most"),
        ([1] * 2000, "1,000"),
    ):
        count = len(heads)
        config = body["config"] | {"heads": heads}
        config |= {
            name: [body["config"][name][0]] * count
            for name in (
                "head_width",
                "mlp_width",
                "output_bias",
                "attention_constant",
                "mlp_constant",
            )
        }
        hostile.write(path, hostile.altered(body, ("config",), config))
        with pytest.raises(cv.CircuitError, match=message):
            cv.Circuit.load(path)


def test_fields_that_do_not_follow_from_the_others_are_told(tmp_path):
    path = made("curve").save(tmp_path / "curve.json")
    body = json.loads(path.read_text())
    body.pop("checksum")
    hostile.write(path, body | {"cpr": None})
    with pytest.warns(UserWarning, match=r"computed anew \(cpr\)"):
        assert same(cv.Curve.load(path), made("curve"))


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (float, 10**400), (float, float("nan")), (float, True), (int, 2**128), (int, 1.0),
        (str, "\ud800"), (tuple[int, int], [1, 2, 3]), (Mapping[str, int], {"\udfff": 1}),
        (Mapping[int, int], {"9" * 5000: 1}), (Mapping[int, int], {"٣": 1}),
    ],
)  # fmt: skip
def test_what_a_file_can_not_hold_is_no_value(wanted, value):
    kind = make_dataclass("Kind", [("field", wanted)])
    with pytest.raises(UnfitError, match=r"field is .* expected"):
        restored(kind, {"field": value})


def test_a_vit_config_is_bounded_too():
    assert shape().depth  # an honest one is
    with pytest.raises(cv.CircuitError, match="number of 100|1,000"):
        restored(cv.ViTConfig, shape().as_dict() | {"heads": [1] * 5000})
