"""A search that was cut short, even by kill -9, goes on where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from random_models import random_images, random_pairs, random_vit, shape
from thresholds import SEEDS

import circuitvit as cv
from circuitvit.discover.acdc import resume
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.files import read_json, write_json
from circuitvit.files.records import SEARCH

module = import_module("circuitvit.discover.acdc.acdc")
LEVELS = ("edge", "node", "block")


@pytest.fixture(autouse=True)
def saved_often(monkeypatch):
    monkeypatch.setattr(resume, "SECONDS_APART", 0.0)
    monkeypatch.setattr(resume, "SHARE_OF_TIME", 1.0)


def question(**changes):
    vit = random_vit(shape(), seed=SEEDS["uniform"])
    options = {"tau": 0.02, "metric": counted()[0], "speedups": Speedups(states=1), **changes}
    return vit, random_pairs(vit, 3), options


def counted(most=10**9):
    """A metric that interrupts the search after some calls, and its calls."""
    calls = []

    def minus_probability(logits, pairs):
        calls.append(len(logits))
        if len(calls) > most:
            raise KeyboardInterrupt
        return -logits.softmax(-1).gather(1, pairs.labels[:, None])[:, 0]

    minus_probability.__qualname__ = "minus_probability"  # resume takes no function of a function
    return minus_probability, calls


def noted(path):
    return read_json(path, what="record")["measured"]


def is_the_same(one, other):
    assert one == other
    assert one.scores == pytest.approx(other.scores, abs=1e-10)
    first, second = one.provenance, other.provenance
    assert first.divergence == pytest.approx(second.divergence, abs=1e-10)
    assert replace(first, divergence=None) == replace(second, divergence=None)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("most", [3, 5, 17])
def test_an_interrupted_search_goes_on_to_the_same_circuit(level, most, tmp_path):
    vit, pairs, options = question(level=level, ablation="zero")
    metric, calls = counted()
    whole = cv.acdc(vit, pairs, **{**options, "metric": metric})
    most = min(most, len(calls) - 1)
    path = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        cv.acdc(vit, pairs, **{**options, "metric": counted(most)[0]}, resume=path)
    before = noted(path)
    assert len(before) > 0
    metric, again = counted()
    is_the_same(cv.acdc(vit, pairs, **{**options, "metric": metric}, resume=path), whole)
    assert len(again) < len(calls)
    assert noted(path)[: len(before)] == before


def test_a_search_that_is_interrupted_again_and_again_ends_with_the_same_circuit(tmp_path):
    vit, pairs, options = question(ablation="mean", reference=None)
    options["reference"] = random_images(vit, 4, seed=9)
    whole, path, lengths = cv.acdc(vit, pairs, **options), tmp_path / "search.json", []
    while True:
        try:
            found = cv.acdc(vit, pairs, **{**options, "metric": counted(9)[0]}, resume=path)
            break
        except KeyboardInterrupt:
            lengths.append(len(noted(path)))
    is_the_same(found, whole)
    assert len(lengths) > 2
    assert sorted(set(lengths)) == lengths


@pytest.mark.parametrize("level", ["edge", "node", "block"])
def test_an_interruption_while_it_is_taken_up_loses_nothing(level, tmp_path):
    vit, pairs, options = question(level=level)
    path = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        cv.acdc(vit, pairs, **{**options, "metric": counted(2)[0]}, resume=path)
    before = noted(path)
    assert len(before) > 0
    for most in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            cv.acdc(vit, pairs, **{**options, "metric": counted(most)[0]}, resume=path)
        assert noted(path)[: len(before)] == before


def test_predictions_and_chunks_do_not_matter_to_a_resumed_search(tmp_path):
    vit, pairs, options = question()
    whole, path = cv.acdc(vit, pairs, **options), tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        cv.acdc(vit, pairs, **{**options, "metric": counted(8)[0]}, resume=path)
    predict = cv.eap(vit, pairs, metric="probability")
    found = cv.acdc(vit, pairs, resume=path, predict=predict, images_at_once=2, **options)
    assert found == whole
    assert found.scores == pytest.approx(whole.scores, abs=1e-10)


def test_a_search_within_a_circuit_goes_on_from_its_start(tmp_path):
    vit, pairs, options = question()
    options["within"] = cv.eap(vit, pairs, metric="probability").top(20)
    whole, path = cv.acdc(vit, pairs, **options), tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        cv.acdc(vit, pairs, **{**options, "metric": counted(8)[0]}, resume=path)
    assert noted(path)
    is_the_same(cv.acdc(vit, pairs, resume=path, **options), whole)


@pytest.mark.parametrize("level", LEVELS)
def test_a_finished_search_answers_at_once(level, tmp_path):
    vit, pairs, options = question(level=level)
    path = tmp_path / "deep" / "search.json"
    whole = cv.acdc(vit, pairs, resume=path, **options)
    text = path.read_text()
    metric, _ = counted(3)  # enough to look at the metric, and for D of the full model
    is_the_same(cv.acdc(vit, pairs, **{**options, "metric": metric}, resume=path), whole)
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["search.json"]


def other_questions():
    vit, pairs, options = question()
    scores = cv.eap(vit, pairs, metric="probability")
    images = random_images(vit, 4, seed=9)
    options["reference"] = images
    joint = {"qkv": "joint"}
    return {
        r"tau 0.02 there, 0.03 here": (vit, pairs, {**options, "tau": 0.03}),
        "data ": (vit, random_pairs(vit, 3, seed=1), options),
        "images 3 there, 2 here": (vit, pairs.subset([0, 1]), options),
        "model ": (random_vit(shape(), seed=78), pairs, options),
        "metric 'test_resume.minus_probability' there, 'kl' here": (
            vit,
            pairs,
            {**options, "metric": "kl"},
        ),
        "ablation 'patch' there, 'zero' here": (vit, pairs, {**options, "ablation": "zero"}),
        "reference None there": (vit, pairs, {**options, "ablation": "mean"}),
        "qkv 'split' there, 'joint' here": (vit, pairs, {**options, **joint}),
        "level 'edge' there, 'node' here": (vit, pairs, {**options, "level": "node"}),
        "within None there": (vit, pairs, {**options, "within": scores.top(9)}),
        "order 'reverse-topological' there": (vit, pairs, {**options, "order": scores}),
    }


@pytest.mark.parametrize("message", other_questions())
def test_the_file_of_another_question_is_refused_and_stays(message, tmp_path):
    vit, pairs, options = question()
    path = tmp_path / "search.json"
    cv.acdc(vit, pairs, resume=path, **options)
    text = path.read_text()
    other, others, changed = other_questions()[message]
    with pytest.raises(cv.CircuitError, match=f"belongs to another search .*{message}"):
        cv.acdc(other, others, resume=path, **changed)
    assert path.read_text() == text


def test_other_circuits_and_scores_to_start_from_are_told_apart(tmp_path):
    vit, pairs, options = question()
    scores, others = (cv.eap(vit, pairs, method="random", seed=seed) for seed in (0, 1))
    for name, one, other in (("within", scores.top(20), others.top(20)), ("order", scores, others)):
        path = tmp_path / name
        cv.acdc(vit, pairs, resume=path, **{name: one}, **options)
        with pytest.raises(cv.CircuitError, match=r"within|writers"):
            cv.acdc(vit, pairs, resume=path, **{name: other}, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a record of a search"),
        ("[1, 2]", "is not a record of a search"),
        (
            '{"format": "circuitvit.acdc", "schema": 99}',
            "has search schema 99, this version reads 1",
        ),
        ('{"format": "circuitvit.ac', "is not a whole record of a search"),
        ("", "is not a whole record of a search"),
    ],
)
def test_a_file_that_is_no_record_is_refused_before_any_work(text, message, tmp_path, monkeypatch):
    vit, pairs, options = question()
    path = tmp_path / "search.json"
    path.write_text(text)
    monkeypatch.setattr(module, "EdgeSearch", None)
    with pytest.raises(cv.CircuitError, match=message):
        cv.acdc(vit, pairs, resume=path, **options)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "damage",
    [
        {"measured": None},
        {"measured": ["a"]},
        {"start": None},
        {"measured": [None] * 9},
        {"question": []},
        {"question": None},
        {"scale": "1"},
        {"full": True},
        {"start": 10**400},
    ],
)
def test_a_record_that_was_tampered_with_is_refused(damage, tmp_path):
    vit, pairs, options = question()
    path = tmp_path / "search.json"
    cv.acdc(vit, pairs, resume=path, **options)
    SEARCH.write(path, {**SEARCH.read(path), **damage})
    with pytest.raises(cv.CircuitError, match=r"damaged or altered|not a whole record of a search"):
        cv.acdc(vit, pairs, resume=path, **options)


def test_a_record_whose_numbers_were_altered_is_refused(tmp_path):
    vit, pairs, options = question()
    path = tmp_path / "search.json"
    cv.acdc(vit, pairs, resume=path, **options)
    body = json.loads(path.read_text())
    write_json(path, {**body, "start": body["start"] + 1e-9})
    with pytest.raises(cv.CircuitError, match="altered after it was saved"):
        cv.acdc(vit, pairs, resume=path, **options)


def test_a_place_that_can_not_be_written_is_noticed_before_any_work(tmp_path, monkeypatch):
    vit, pairs, options = question()
    monkeypatch.setattr(module, "EdgeSearch", None)
    (tmp_path / "file").write_text("x")
    with pytest.raises(cv.CircuitError, match="cannot write"):
        cv.acdc(vit, pairs, resume=tmp_path / "file" / "search.json", **options)
    with pytest.raises(cv.CircuitError, match="cannot read the record of a search"):
        cv.acdc(vit, pairs, resume=tmp_path, **options)


NURSERY = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import circuitvit as cv
from random_models import random_pairs, random_vit
from circuitvit.discover.acdc import resume
resume.SECONDS_APART, resume.SHARE_OF_TIME = 0.0, 1.0
config = cv.ViTConfig(image_size=16, patch_size=2, channels=1, classes=4, width=32, depth=3,
                      heads=4, head_width=8, mlp_width=64)
vit = random_vit(config, seed=60, dtype=torch.float32)
pairs = random_pairs(vit, 16)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        names = line.split()
        circuit = cv.acdc(vit, pairs, tau=3e-3, ablation="zero", resume=names[0])
        circuit.save(names[1])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks one process for each search, so that torch is imported once."""


@pytest.fixture
def nursery():
    script = NURSERY.format(tests=str(Path(__file__).parents[1]))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def start(nursery, *paths):
    nursery.stdin.write(" ".join(map(str, paths)) + "\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_search_killed_at_random_moments_finds_the_same_circuit(nursery, tmp_path, kills):
    """SIGKILL to a process of its own, again and again; each time it goes on from the file."""
    start(nursery, tmp_path / "whole.json", tmp_path / "whole.circuit")
    assert nursery.stdout.readline() == "0\n"
    whole = cv.Circuit.load(tmp_path / "whole.circuit")
    total = len(noted(tmp_path / "whole.json"))
    draw = random.Random(7)
    path, lengths = tmp_path / "search.json", [0]
    for share in sorted(draw.uniform(0.02, 0.8) for _ in range(kills)):
        child = start(nursery, path, tmp_path / "found.circuit")
        until = max(int(share * total), lengths[-1] + 1)
        patience = time.monotonic() + 120
        while not path.exists() or len(noted(path)) < until:
            assert time.monotonic() < patience
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert nursery.stdout.readline() == f"{-signal.SIGKILL}\n"
        lengths.append(len(noted(path)))
    assert lengths == sorted(set(lengths))  # each got further
    assert lengths[-1] < total  # and none to the end
    assert not (tmp_path / "found.circuit").exists()
    start(nursery, path, tmp_path / "found.circuit")
    assert nursery.stdout.readline() == "0\n"
    found = cv.Circuit.load(tmp_path / "found.circuit")
    assert found == whole
    assert found.scores == pytest.approx(whole.scores, abs=1e-6)
    assert found.provenance.evaluations == whole.provenance.evaluations
    assert 0 < len(found) < total
