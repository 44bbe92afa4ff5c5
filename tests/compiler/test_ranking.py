"""Whose units rank by scores, by chance or by measured effects; and what is said of it."""

import pytest
from random_models import random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.compiler import measures_effects
from circuitvit.compiler.ranking import ranked_units, warn_of_other_ablation
from circuitvit.graph.edge_graph import edge_count, edges_among, units_of

VIT = random_vit(shape(depth=4), seed=2)
PAIRS = random_pairs(VIT, 2)
EVERYTHING = edges_among(VIT.config, units_of(VIT.config), "split")


def order(circuit):
    return ranked_units(
        VIT, circuit, lambda units: float(len(units)), 6.0, ablation="zero", reference=None
    )


def nodes(method="random", **options):
    scores = cv.eap(VIT, PAIRS, method=method, level="node", **options)
    return scores.top(len(scores))


def test_every_draw_of_random_edges_has_an_order_of_its_own():
    drawn = cv.random_edges(VIT.config, edge_count(VIT.config), seed=1)
    assert len({order(circuit) for circuit in drawn}) == 15
    assert order(drawn[3]) == order(cv.random_edges(VIT.config, len(EVERYTHING), seed=1)[3])
    assert order(drawn[0]) != order(cv.random_edges(VIT.config, len(EVERYTHING), seed=2)[0])
    assert order(drawn[0] | drawn[1]) == order(drawn[2] & drawn[3])  # alike in all that is left
    assert order(drawn[0] & drawn[1]) != order(cv.random_edges(VIT.config, 60, seed=1)[0])


def test_what_is_random_in_all_its_parts_is_random():
    several = [
        cv.eap(VIT, PAIRS, method="random", level="node", seed=seed, ablation=ablation)
        for seed, ablation in ((0, "patch"), (1, "zero"))
    ]
    mixed = cv.EdgeScores.ensemble(several)
    circuit = mixed.top(len(mixed))
    assert circuit.provenance.method == "ensemble of random, random"
    sizes = [abs(mixed[unit]) for unit in order(circuit)]
    assert sizes == sorted(map(abs, mixed.values()), reverse=True)  # not divided by costs
    for random in (nodes(), nodes() | nodes(seed=1), circuit, circuit & nodes()):
        assert random.provenance.methods == {"random"}
        assert not measures_effects(random)
    for other in (nodes() | nodes("eap"), nodes("eap") & circuit, cv.Circuit.full(VIT.config)):
        assert measures_effects(other)  # scores that are random in part are no effects
        assert order(other) == order(cv.Circuit.full(VIT.config))
    assert not measures_effects(nodes("eap"))
    assert not measures_effects(nodes("eap") & nodes("relp"))


def test_node_scores_of_another_ablation_are_told(recwarn):
    patch, zero = nodes("eap"), nodes("eap", ablation="zero")
    reference = random_images(VIT, 4)
    for circuit, said in ((zero, "zero"), (patch | zero, "patch, zero")):
        with pytest.warns(UserWarning, match=f"node scores found under {said}, while"):
            cv.compile(VIT, circuit, target_macs=0.6, ablation="mean", reference=reference)
    for circuit in (
        zero,
        patch,  # which can't be compiled, so nobody compiles under it
        nodes(),
        patch.keeping(EVERYTHING[:40]) | nodes(),
        cv.Circuit(VIT.config, EVERYTHING),
    ):
        warn_of_other_ablation(circuit, "zero")
    cv.compile(VIT, patch, target_macs=0.6, fresh=True)
    assert not recwarn.list


def test_acdc_over_units_gives_no_effects_so_units_rank_by_measured_ones(recwarn):
    for level in ("node", "block"):
        circuit = cv.acdc(VIT, PAIRS, tau=1e-9, ablation="zero", level=level)
        assert dict(circuit.scores) == {}
        assert measures_effects(circuit)
    edges = cv.acdc(VIT, PAIRS, tau=1e-3, ablation="zero")
    assert set(edges.scores) == set(edges.edges)


def test_parts_found_under_mean_and_another_ablation_are_not_compiled_in_silence(
    tmp_path, as_users_call
):
    origins = [cv.Provenance(ablation=name, metric="kl") for name in ("mean", "patch", "zero")]
    mean, patch, zero = (cv.Circuit(VIT.config, EVERYTHING, provenance=o) for o in origins)
    images = random_images(VIT, 4)
    for circuit in (mean | patch, cv.Circuit.load((zero & mean).save(tmp_path / "c.json"))):
        with pytest.raises(cv.CircuitError, match="found under mean, .*Give ablation='zero'"):
            cv.compile(VIT, circuit, reference=images)
        cv.compile(VIT, circuit, ablation="zero")
        cv.compile(VIT, circuit, ablation="mean", reference=images)
        cv.compile(VIT, circuit, fresh=True)
        with pytest.raises(cv.CircuitError, match="ablation of discovery is mean, "):
            cv.faithfulness(VIT, circuit, PAIRS)
    with pytest.raises(cv.CircuitError, match="'mean' needs reference images"):
        cv.compile(VIT, mean & cv.Circuit(VIT.config, EVERYTHING))
    cv.compile(VIT, patch | zero)
    with pytest.raises(cv.CircuitError, match="ablation is '', expected 'zero' or 'mean'"):
        cv.compile(VIT, zero, ablation="")
