"""Where a search starts, in which order it goes, and what searches at several τ share."""

import math

import oracles
import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape
from thresholds import SEEDS

import circuitvit as cv
from circuitvit.discover.acdc.acdc import acdc_sweep
from circuitvit.discover.acdc.decisions import TIE, Decisions
from circuitvit.discover.acdc.engine.circuit_state import Speedups
from circuitvit.discover.acdc.engine.incremental import IncrementalRun
from circuitvit.discover.acdc.search import in_common, split

ABLATIONS = ("patch", "zero", "mean")


def question(name="uniform", ablation="patch"):
    vit = random_vit(shape(name), seed=SEEDS[name])
    options = {"ablation": ablation, "reference": random_images(vit, 4, seed=9)}
    return vit, random_pairs(vit, 3), options


@pytest.fixture
def tried(monkeypatch):
    """How many removals were tried together, each time."""
    moments, real = [], IncrementalRun.try_removals

    def try_removals(run, first, count, keeps=()):
        moments.append(count)
        return real(run, first, count, keeps)

    monkeypatch.setattr(IncrementalRun, "try_removals", try_removals)
    return moments


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["uniform", "ragged", "mean, fc_norm, no class token"])
def test_rises_and_the_divergence_are_those_of_whole_runs(name, ablation):
    vit, pairs, options = question(name, ablation)
    circuit = cv.acdc(vit, pairs, tau=0.02, **options)
    rises, divergence = oracles.acdc_rises(vit, pairs, 0.02, **options)
    assert circuit.scores == pytest.approx(rises, abs=1e-10)
    assert circuit.provenance.divergence == pytest.approx(divergence, abs=1e-10)
    assert len(rises) > 2


@pytest.mark.parametrize("qkv", ["split", "joint"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_search_may_start_within_a_circuit(ablation, qkv):
    vit, pairs, options = question("ragged", ablation)
    scores = cv.eap(vit, pairs, qkv=qkv, **options)
    for n in (1, 8, 20):
        start = scores.top(n)
        got = cv.acdc(vit, pairs, tau=0.02, within=start, qkv=qkv, **options)
        wanted = oracles.acdc_rises(vit, pairs, 0.02, within=start.edges, qkv=qkv, **options)
        assert got.scores == pytest.approx(wanted[0], abs=1e-10)
        assert got.provenance.divergence == pytest.approx(wanted[1], abs=1e-10)
        assert set(got.edges) <= set(start.edges)
        assert got.provenance.selection == f"within top {n} by |score| of eap"


def test_a_search_within_no_edges_finds_none():
    vit, pairs, options = question()
    nothing = cv.Circuit(vit.config, (), qkv="split")
    got = cv.acdc(vit, pairs, tau=0.02, within=nothing, **options)
    wanted = oracles.acdc_rises(vit, pairs, 0.02, within=(), **options)
    assert got.edges == ()
    assert got.provenance.divergence == pytest.approx(wanted[1], abs=1e-10)


@pytest.mark.parametrize("qkv", ["split", "joint"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_writers_may_be_tried_weakest_first(ablation, qkv):
    vit, pairs, options = question("registers, q/k norm, no qkv bias, tanh", ablation)
    scores = cv.eap(vit, pairs, qkv=qkv, **options)
    got = cv.acdc(vit, pairs, tau=0.02, order=scores, qkv=qkv, **options)
    wanted = oracles.acdc_rises(vit, pairs, 0.02, order=scores, qkv=qkv, **options)
    assert got.scores == pytest.approx(wanted[0], abs=1e-10)
    assert got.provenance.divergence == pytest.approx(wanted[1], abs=1e-10)
    assert got.provenance.order == "reverse-topological, writers by |eap|, weakest first"


def test_another_order_is_another_circuit():
    vit, pairs, options = question()
    scores = cv.eap(vit, pairs, method="exact", metric="kl", **options)
    found = [cv.acdc(vit, pairs, tau=0.02, order=o, **options).edges for o in (None, scores)]
    assert found[0] != found[1]


def test_an_order_and_a_start_go_together():
    vit, pairs, options = question("mean")
    scores = cv.eap(vit, pairs, **options)
    starts = {"within": scores.top(25), "order": scores}
    got = cv.acdc(vit, pairs, tau=0.03, **starts, **options)
    starts["within"] = starts["within"].edges
    assert got.scores == pytest.approx(
        oracles.acdc_rises(vit, pairs, 0.03, **starts, **options)[0], abs=1e-10
    )


def test_predictions_change_the_number_of_batches_and_nothing_else(tried):
    vit, pairs, options = question()
    first = cv.acdc(vit, pairs, tau=0.02, **options)
    plain = len(tried)
    batches = {}
    perfect = cv.EdgeScores(
        vit.config,
        {e: float(e in first.edges) for e in oracles.edges(vit.config, "split")},
        qkv="split",
        provenance=cv.eap(vit, pairs).provenance,
    )
    for name, scores in (
        ("perfect", perfect),
        ("eap", cv.eap(vit, pairs)),
        ("random", cv.eap(vit, pairs, method="random")),
    ):
        tried.clear()
        found = cv.acdc(vit, pairs, tau=0.02, predict=scores, **options)
        assert found == first
        assert found.scores == pytest.approx(first.scores, abs=1e-10)
        assert found.provenance.evaluations == first.provenance.evaluations
        batches[name] = len(tried)
    assert batches["perfect"] < plain
    assert batches["perfect"] < batches["random"]


@pytest.mark.parametrize("states", [1, 2, 100])
def test_as_many_removals_are_tried_together_as_is_said(states, tried):
    vit, pairs, options = question()
    first = cv.acdc(vit, pairs, tau=0.3, **options)
    tried.clear()
    found = cv.acdc(vit, pairs, tau=0.3, speedups=Speedups(states=states), **options)
    assert found == first
    assert max(tried) == min(states, 7)  # `logits` has 7 writers
    assert sum(tried) >= found.provenance.evaluations


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("level", ["edge", "node", "block"])
def test_a_sweep_finds_what_each_search_alone_finds(level, ablation):
    vit, pairs, options = question("mean", ablation)
    taus = (0.1, 0.01, 0.5, 0.03, 0.1)
    swept = acdc_sweep(vit, pairs, taus, level=level, **options)
    assert [circuit.provenance.tau for circuit in swept] == list(taus)
    for tau, circuit in zip(taus, swept, strict=True):
        alone = cv.acdc(vit, pairs, tau=tau, level=level, **options)
        assert circuit == alone
        assert circuit.scores == pytest.approx(alone.scores, abs=1e-10)
        assert circuit.provenance.evaluations == alone.provenance.evaluations


def test_a_sweep_asks_less_than_each_search_alone(tried):
    vit, pairs, options = question()
    taus, one = (0.01, 0.011, 0.5, 0.51), Speedups(states=1)
    for tau in taus:
        cv.acdc(vit, pairs, tau=tau, speedups=one, **options)
    alone = len(tried)
    tried.clear()
    acdc_sweep(vit, pairs, taus, speedups=one, **options)
    assert len(tried) < 0.8 * alone


def test_a_sweep_takes_the_options_of_a_search():
    vit, pairs, options = question()
    scores = cv.eap(vit, pairs, **options)
    more = {"within": scores.top(30), "order": scores, "predict": scores, "images_at_once": 2}
    for tau, got in zip(
        (0.1, 0.02), acdc_sweep(vit, pairs, (0.1, 0.02), **more, **options), strict=True
    ):
        assert got == cv.acdc(vit, pairs, tau=tau, **more, **options)
    assert acdc_sweep(vit, pairs, ()) == ()


def test_searches_have_in_common_what_comes_before_the_first_decision_that_differs():
    measured = [0.1, None, 0.5, 0.2, 0.9]
    # At τ=0.2: 0.1 goes, 0.5 stays (+0.4), 0.2 goes (+0.1), 0.9 stays (+0.7).
    assert in_common(measured, 0.0, 0.2, 0.2) == 5
    assert in_common(measured, 0.0, 0.2, 0.3) == 5
    assert in_common(measured, 0.0, 0.2, 0.5) == 3  # there 0.5 goes; its value still holds
    assert in_common(measured, 0.0, 0.2, 0.05) == 1
    assert in_common(measured, 0.0, 0.2, 0.7) == 3
    assert in_common(measured, 0.4, 0.2, 0.05) == 4  # started at 0.4: 0.1 goes, 0.5 stays
    assert in_common([], 0.0, 0.2, 0.3) == 0


def test_decisions_are_signed_and_ties_are_told():
    decisions = Decisions(tau=0.1, tie=TIE[torch.float64])
    assert decisions.decide("a", -0.5)  # a fall is no rise
    assert not decisions.decide("b", -0.35)
    assert not decisions.decide("c", -0.5 + 0.1 + 1e-14)
    decisions.drop()
    assert decisions.decide("d", -0.5 + 0.1 - 1e-9)
    assert decisions.ties == ["c"]
    assert decisions.evaluations == 4
    assert list(decisions.rises) == ["b", "c"]
    assert decisions.rises["b"] == pytest.approx(0.15)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_becomes_nan_names_the_edge(value):
    with pytest.raises(cv.CircuitError, match="became NaN or infinite without embed->m0"):
        Decisions(tau=0.1, tie=0.0).decide("embed->m0", value)


def test_a_metric_that_becomes_nan_only_without_an_edge_stops_the_search():
    vit, pairs, options = question()
    calls = []

    def sometimes(logits, pairs):
        calls.append(1)
        return logits[:, 0] * (float("nan") if len(calls) > 6 else 1.0)

    with pytest.raises(cv.CircuitError, match="sometimes returned NaN"):
        cv.acdc(vit, pairs, metric=sometimes, tau=0.1, **options)


def test_a_joint_reader_stands_for_three():
    assert split("a1.h0") == ("a1.h0.q", "a1.h0.k", "a1.h0.v")
    assert split("a1.h0.k") == ("a1.h0.k",)
    assert split("m1") == ("m1",)
    assert split("logits") == ("logits",)


def bad_calls():
    vit, pairs, _ = question()
    other = random_vit(shape("ragged"))
    scores = cv.eap(vit, pairs)
    joint, nodes = cv.eap(vit, pairs, qkv="joint"), cv.eap(vit, pairs, level="node")
    foreign = cv.eap(other, random_pairs(other, 2))
    return {
        "within has qkv='joint', the search qkv='split'": {"within": joint.top(5)},
        "order has qkv='joint', the search qkv='split'": {"order": joint},
        "predict has qkv='split', the search qkv='joint'": {"predict": scores, "qkv": "joint"},
        "within is for level='edge', got level='node'": {"within": scores.top(5), "level": "node"},
        "order is for level='edge', got level='block'": {"order": scores, "level": "block"},
        "predict is for level='edge'": {"predict": scores, "level": "node"},
        "order are .* nodes, eap.* edges. Score the same model at level='edge'": {"order": nodes},
        "predict are .* not a score for each": {"predict": foreign},
        "within is a EdgeScores, expected Circuit": {"within": scores},
        "order is a dict, expected EdgeScores": {"order": dict(scores)},
        "predict is a Circuit, expected EdgeScores": {"predict": scores.top(5)},
        "this circuit belongs to another model": {"within": foreign.top(5)},
    }


@pytest.mark.parametrize("message", bad_calls())
def test_what_does_not_fit_the_search_is_refused_with_the_remedy(message, as_users_call):
    vit, pairs, _ = question()
    with pytest.raises(cv.CircuitError, match=message):
        cv.acdc(vit, pairs, **bad_calls()[message])


@pytest.mark.parametrize(
    ("taus", "options", "message"),
    [
        ((0.1,), {"resume": "search.json"}, "acdc_sweep has no resume"),
        ((0.1,), {"ablations": "zero"}, r"got \['ablations'\], expected some of"),
        ((0.1,), {"tau": 0.2}, r"got \['tau'\], expected some of"),
        ((0.1, 0.0), {}, "tau is 0.0, expected a number > 0"),
        ((0.1, "b"), {}, "tau is 'b'"),
        pytest.param(0.1, {}, "taus"),
    ],
)
def test_bad_sweeps_are_refused_with_the_remedy(taus, options, message, as_users_call):
    vit, pairs, _ = question()
    with pytest.raises(cv.CircuitError, match=message):
        acdc_sweep(vit, pairs, taus, **options)
