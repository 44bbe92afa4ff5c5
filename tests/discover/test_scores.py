import pytest
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of, edges_of, node_named

CONFIG = shape()
NAMES = edge_names_of(CONFIG)


def scores_of(values, **origin):
    full = dict.fromkeys(NAMES, 0.0) | values
    return cv.EdgeScores(CONFIG, full, qkv="split", provenance=cv.Provenance(method="x", **origin))


def test_top_takes_exactly_n_by_size_or_by_sign():
    scores = scores_of({"embed->m0": -3.0, "m0->logits": 2.0, "m1->logits": 1.0})
    assert set(scores.top(2).edges) == {"embed->m0", "m0->logits"}
    assert set(scores.top(2, signed=True).edges) == {"m0->logits", "m1->logits"}
    for n in range(len(NAMES) + 1):
        assert len(scores.top(n)) == n


def test_ties_fall_by_the_pinned_order():
    scores = scores_of({})
    assert scores.top(5).edges == NAMES[:5]
    assert scores.ranked() == NAMES


def test_above_takes_what_exceeds_the_threshold():
    scores = scores_of({"embed->m0": -3.0, "m0->logits": 2.0, "m1->logits": 1.0})
    assert set(scores.above(1.0).edges) == {"embed->m0", "m0->logits"}
    assert set(scores.above(0.5, signed=True).edges) == {"m0->logits", "m1->logits"}
    assert set(scores.above(0.0).edges) == {"embed->m0", "m0->logits", "m1->logits"}


def brute_force_greedy(scores, n):
    """Step by step, the best edge into a node that is already there."""
    inside, names = {"embed", "logits"}, []
    for _ in range(n):
        open_edges = [
            edge for edge in edges_of(CONFIG)
            if node_named(edge.reader).unit in inside and edge.name not in names
        ]  # fmt: skip
        best = max(open_edges, key=lambda edge: (abs(scores[edge.name]), -NAMES.index(edge.name)))
        names.append(best.name)
        inside.add(best.writer)
    return set(names)


def test_greedy_grows_from_the_logits_and_has_no_dead_ends():
    vit = random_vit(CONFIG)
    scores = cv.eap(vit, random_pairs(vit, 2), method="random", seed=3)
    for n in (0, 1, 5, 17, len(NAMES)):
        circuit = scores.greedy(n)
        assert len(circuit) == n
        assert set(circuit.edges) == brute_force_greedy(scores, n)
        assert circuit.without_dangling("zero") == circuit
    assert set(scores.greedy(12).edges) != set(scores.top(12).edges)


def test_a_node_level_choice_keeps_all_edges_among_the_nodes():
    vit = random_vit(CONFIG)
    scores = cv.eap(vit, random_pairs(vit, 3), level="node")
    assert set(scores) == {"a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"}
    circuit = scores.top(3)
    inside = {"embed", "logits", *scores.ranked()[:3]}
    assert set(circuit.edges) == {
        e.name for e in edges_of(CONFIG) if {e.writer, node_named(e.reader).unit} <= inside
    }
    with pytest.raises(cv.CircuitError, match="greedy needs scores at level='edge'"):
        scores.greedy(3)


def test_a_choice_says_how_it_was_made():
    scores = scores_of({"embed->m0": -3.0}, tau=None)
    assert scores.top(4).provenance.selection == "top 4 by |score|"
    assert scores.greedy(4, signed=True).provenance.selection == "greedy 4 by score"
    assert scores.top(1).scores == {"embed->m0": -3.0}


@pytest.mark.parametrize("n", [-1, 47, 1000])
def test_more_edges_than_there_are_can_not_be_had(n):
    for choose in (scores_of({}).top, scores_of({}).greedy):
        with pytest.raises(cv.CircuitError, match=f"asked for {n} edges, expected 0 to 46"):
            choose(n)


def test_an_ensemble_is_the_mean_of_signed_ranks():
    one = scores_of({"embed->m0": -30.0, "m0->logits": 2.0, "m1->logits": 2.0})
    two = scores_of({"embed->m0": 0.5, "m0->logits": -0.01, "embed->logits": 0.1})
    both = cv.EdgeScores.ensemble([one, two])
    assert both["embed->m0"] == pytest.approx((-46 + 46) / 46 / 2)
    assert both["m0->logits"] == pytest.approx((44.5 - 44) / 46 / 2)
    assert both["m1->logits"] == pytest.approx(44.5 / 46 / 2)
    assert both["embed->logits"] == pytest.approx(45 / 46 / 2)
    assert both["embed->a0.h0.q"] == 0
    assert both.top(1).edges == ("m1->logits",) or both.top(1).edges == ("embed->logits",)


def test_an_ensemble_does_not_mind_scales():
    vit = random_vit(CONFIG)
    scores = cv.eap(vit, random_pairs(vit, 3))
    same = cv.EdgeScores.ensemble([scores])
    assert same.ranked() == scores.ranked()
    assert same.ranked(signed=True) == scores.ranked(signed=True)
    larger = cv.EdgeScores(
        CONFIG,
        {name: 1e6 * score for name, score in scores.items()},
        qkv="split",
        provenance=scores.provenance,
    )
    assert dict(cv.EdgeScores.ensemble([scores, larger])) == dict(same)


def test_an_ensemble_says_what_it_was_made_of():
    vit = random_vit(CONFIG)
    pairs = random_pairs(vit, 3)
    several = [cv.eap(vit, pairs, method=m, steps=2) for m in ("eap", "eap-ig-inputs", "relp")]
    origin = cv.EdgeScores.ensemble(several).provenance
    assert origin.method == "ensemble of eap, eap-ig-inputs, relp"
    assert (origin.ablation, origin.metric, origin.images) == ("patch", "logit_difference", 3)
    assert origin.model == vit.fingerprint()
    assert origin.steps is None
    assert (origin.ablations, origin.methods) == ((), {"eap", "eap-ig-inputs", "relp"})
    several.append(cv.eap(vit, pairs, ablation="zero"))
    origin = cv.EdgeScores.ensemble(several).provenance
    assert (origin.ablation, origin.ablations) == (None, ("patch", "zero"))
    assert origin.metric == "logit_difference"


def test_what_cannot_be_combined_is_refused():
    vit = random_vit(CONFIG)
    pairs = random_pairs(vit, 2)
    edges, nodes = (cv.eap(vit, pairs, method="random", level=level) for level in ("edge", "node"))
    for several in ([], [edges, nodes], [edges, dict(edges)]):
        with pytest.raises(cv.CircuitError, match="ensemble takes a list|can't be combined"):
            cv.EdgeScores.ensemble(several)


def test_scores_by_position_make_no_circuit_until_they_are_added_up():
    vit = random_vit(CONFIG)
    pairs = random_pairs(vit, 3)
    scores = cv.eap(vit, pairs, method="random", positions="class/patch")
    assert len(scores) == 2 * len(NAMES)
    for choose in (lambda: scores.top(3), lambda: scores.greedy(3), lambda: scores.above(0.1)):
        with pytest.raises(cv.CircuitError, match=r"scores.over_positions\(\)"):
            choose()
    together = scores.over_positions()
    assert together["embed->m0"] == scores["embed->m0@class"] + scores["embed->m0@patch"]
    assert len(together.top(3)) == 3
    assert together.over_positions() is together


def test_neurons_are_chosen_for_pruning():
    vit = random_vit(CONFIG)
    scores = cv.eap(vit, random_pairs(vit, 3), level="neuron")
    assert list(scores) == [f"m{block}.n{n}" for block in (1, 0) for n in range(6)]
    weakest = scores.weakest_neurons(7)
    gone = {f"m{block}.n{n}" for block, neurons in weakest.items() for n in neurons}
    assert gone == set(sorted(scores, key=lambda name: abs(scores[name]))[:7])
    smaller = cv.prune_mlp(vit, weakest)
    assert sum(smaller.config.mlp_width) == 5
    assert cv.prune_mlp(vit, scores.weakest_neurons(0)).config == vit.config
    signed = scores.weakest_neurons(1, signed=True)
    ((block, (neuron,)),) = signed.items()
    assert scores[f"m{block}.n{neuron}"] == min(scores.values())


def test_neurons_make_no_circuit():
    vit = random_vit(CONFIG)
    scores = cv.eap(vit, random_pairs(vit, 3), level="neuron")
    for choose in (lambda: scores.top(3), lambda: scores.greedy(3), lambda: scores.above(0.1)):
        with pytest.raises(cv.CircuitError, match=r"prune_mlp\(vit, scores.weakest_neurons\(n\)\)"):
            choose()
    with pytest.raises(cv.CircuitError, match="asked for 13 neurons, expected 0 to 12"):
        scores.weakest_neurons(13)
    with pytest.raises(cv.CircuitError, match="these are of edges"):
        scores_of({}).weakest_neurons(1)
