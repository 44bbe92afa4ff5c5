import oracles
import pytest
import torch
from random_models import SHAPES, TINY, random_images, random_pairs, random_vit, shape
from thresholds import SPEEDUPS, is_telling, telling_circuits

import circuitvit as cv
from circuitvit.discover.acdc.reference import reference_acdc
from circuitvit.graph.edge_graph import edge_names_of, units_of

ABLATIONS = ("patch", "zero", "mean")
MODELS = [
    (name, seed, ABLATIONS[(index + seed) % 3], ("split", "joint")[(index // 3 + seed) % 2])
    for index, name in enumerate(SHAPES)
    for seed in [index % 2]
]


@pytest.mark.parametrize(("name", "seed", "ablation", "qkv"), MODELS)
def test_acdc_keeps_the_same_edges_as_one_hooked_run_an_edge(name, seed, ablation, qkv):
    """9 random models × 2 τ, with each speed-up on and off; `make exhaustive` has the whole grid."""
    vit = random_vit(shape(name), seed=10 + seed)
    pairs, reference = random_pairs(vit, 3, seed), random_images(vit, 4, seed=50)
    wanted = {"ablation": ablation, "qkv": qkv, "reference": reference}
    found = telling_circuits(vit, pairs, 2, **wanted)
    assert any(is_telling(circuit) for circuit in found.values())
    for tau, circuit in found.items():
        expected = oracles.acdc(vit, pairs, tau, **wanted)
        assert circuit.edges == expected
        assert circuit.provenance.ties == ()
        for speedups in SPEEDUPS.values():
            got = cv.acdc(vit, pairs, tau=tau, speedups=speedups, **wanted)
            assert got.edges == expected
            assert got.scores == pytest.approx(circuit.scores, abs=1e-10)


def test_the_comparison_fails_when_one_bias_is_changed():
    vit, other = random_vit(shape(), seed=10), random_vit(shape(), seed=10)
    pairs = random_pairs(vit, 3)
    with torch.no_grad():
        other.blocks[0].mlp.fc2.bias.mul_(-1)
    found = [cv.acdc(model, pairs, tau=0.01).edges for model in (vit, other)]
    assert found[0] != found[1]


def test_acdc_in_single_precision_decides_like_the_oracle():
    vit = random_vit(shape(), seed=11, dtype=torch.float32)
    pairs = random_pairs(vit, 3)
    for tau in (0.003, 0.03):
        assert cv.acdc(vit, pairs, tau=tau).edges == oracles.acdc(vit, pairs, tau, "patch")


@pytest.mark.parametrize("metric", ["logit_difference", "cross_entropy", "probability"])
def test_other_metrics_are_measured_from_the_full_model(metric):
    vit = random_vit(shape(), seed=12)
    pairs = random_pairs(vit, 4)
    expected = oracles.acdc(vit, pairs, 0.05, "patch", metric=metric)
    assert cv.acdc(vit, pairs, tau=0.05, metric=metric).edges == expected


def test_a_callable_metric_does_what_its_name_does():
    vit = random_vit(shape(), seed=12)
    pairs = random_pairs(vit, 4)

    def minus_probability(logits, pairs):
        return -logits.softmax(-1).gather(1, pairs.labels[:, None])[:, 0]

    found = cv.acdc(vit, pairs, tau=0.01, metric=minus_probability)
    assert found == cv.acdc(vit, pairs, tau=0.01, metric="probability")
    assert found.provenance.metric == "minus_probability"


def test_the_divergence_and_the_rises_are_those_of_whole_runs():
    vit = random_vit(shape(), seed=13)
    pairs = random_pairs(vit, 4)
    circuit = cv.acdc(vit, pairs, tau=0.02)
    ablated = oracles.ablated_values(vit, pairs, "patch")
    full = vit(pairs.clean).detach()

    def divergence(kept):
        logits = oracles.circuit_logits(vit, kept, pairs.clean, ablated)
        return float(oracles.loss("kl", logits, pairs, full).mean())

    assert circuit.provenance.divergence == pytest.approx(divergence(circuit.edges), abs=1e-10)
    last = circuit.edges[-1]  # tried last, against the final circuit
    rise = divergence(set(circuit.edges) - {last}) - divergence(circuit.edges)
    assert circuit.scores[last] == pytest.approx(rise, abs=1e-10)
    assert all(score >= 0.02 for score in circuit.scores.values())


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("level", ["node", "block"])
def test_nodes_and_blocks_go_like_in_whole_hooked_runs(level, ablation):
    vit = random_vit(shape("ragged"), seed=14)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 5, seed=9)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    full, everything = vit(pairs.clean).detach(), oracles.edges(vit.config, "split")
    groups = [[unit] for unit in reversed(units_of(vit.config))]
    if level == "block":
        blocks = range(2, -1, -1)
        groups = [[u for u in units_of(vit.config) if u[1] == str(block)] for block in blocks]
    for tau in (0.01, 0.1, 0.5):
        removed, current = set(), 0.0
        for group in groups:
            trial = removed | set(group)
            kept = [e for e in everything if e.split("->")[0] not in trial]
            logits = oracles.circuit_logits(vit, kept, pairs.clean, ablated)
            new = float(oracles.loss("kl", logits, pairs, full).mean())
            if new - current < tau:
                removed, current = trial, new
        expected = {
            e for e in everything
            if not {e.split("->")[0], e.split("->")[1].removesuffix(".q").removesuffix(".k").removesuffix(".v")} & removed
        }  # fmt: skip
        got = cv.acdc(vit, pairs, tau=tau, level=level, ablation=ablation, reference=reference)
        assert set(got.edges) == expected


def test_the_same_question_has_the_same_answer():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    first, second = (cv.acdc(vit, pairs, tau=0.01) for _ in range(2))
    assert first == second
    assert first.provenance == second.provenance
    assert first.scores == second.scores


def test_the_provenance_says_how_to_find_the_circuit_again():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    origin = cv.acdc(vit, pairs, tau=0.02, ablation="zero").provenance
    assert (origin.method, origin.tau, origin.ablation, origin.metric) == (
        "acdc",
        0.02,
        "zero",
        "kl",
    )
    assert (origin.images, origin.order, origin.level) == (3, "reverse-topological", "edge")
    assert (origin.model, origin.data) == (vit.fingerprint(), pairs.fingerprint())
    assert set(origin.versions) == {"circuitvit", "torch"}
    assert torch.__version__.startswith(origin.versions["torch"].split("+")[0])
    assert origin.reference is None
    assert 0 < origin.evaluations <= len(edge_names_of(vit.config))


def test_a_decision_at_tau_itself_is_reported_as_a_tie():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    full = cv.acdc(vit, pairs, tau=1e-12)
    first = full.edges[0]
    found = cv.acdc(vit, pairs, tau=full.scores[first])
    assert first in found.provenance.ties


def test_a_timm_model_gives_the_oracles_circuit():
    pytest.importorskip("timm")
    from random_models import as_timm

    module = as_timm(
        img_size=4, patch_size=2, in_chans=1, embed_dim=8, depth=2, num_heads=2, mlp_ratio=1,
        num_classes=4, init_values=0.5,
    )  # fmt: skip
    vit = cv.load_vit(module)
    pairs = random_pairs(vit, 3)
    for tau, circuit in telling_circuits(vit, pairs, 3).items():
        assert circuit.edges == oracles.acdc(vit, pairs, tau, "patch")


def bad_calls():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    wrong = cv.Pairs(clean=pairs.clean, corrupt=pairs.corrupt, labels=torch.tensor([0, 4, 1]))
    alone = cv.Pairs(clean=pairs.clean)
    small = cv.Pairs(
        clean=torch.zeros(2, 1, 8, 8).double(), corrupt=torch.ones(2, 1, 8, 8).double()
    )
    single = cv.Pairs(clean=pairs.clean.float(), corrupt=pairs.corrupt.float())
    return {
        "tau is 0, expected a number > 0": lambda: cv.acdc(vit, pairs, tau=0),
        "tau is -1": lambda: cv.acdc(vit, pairs, tau=-1),
        "tau is nan": lambda: cv.acdc(vit, pairs, tau=float("nan")),
        "labels are out of range: they go from 0 to 4": lambda: cv.acdc(vit, wrong, metric="cross_entropy"),
        "needs corrupt images": lambda: cv.acdc(vit, alone),
        "needs corrupt_labels": lambda: cv.acdc(vit, wrong.subset([0, 2]), metric="logit_difference"),
        "clean images have shape": lambda: cv.acdc(vit, small),
        "clean images have dtype torch.float32": lambda: cv.acdc(vit, single),
        "metric is 'loss', expected one of": lambda: cv.acdc(vit, pairs, metric="loss"),
        "level is 'neuron', expected one of": lambda: cv.acdc(vit, pairs, level="neuron"),
        "qkv is 'both'": lambda: cv.acdc(vit, pairs, qkv="both"),
        "can't be called with two arguments": lambda: cv.acdc(vit, pairs, metric=lambda x: x.sum(1)),
        r"returned a tensor of shape \(\), expected a tensor with one value an image": lambda: cv.acdc(vit, pairs, metric=lambda x, p: x.mean()),
        "returned NaN": lambda: cv.acdc(vit, pairs, metric=lambda x, p: x[:, 0] * float("nan")),
        "pairs are a Tensor, expected circuitvit.Pairs": lambda: cv.acdc(vit, pairs.clean),
        "expected a circuitvit.ViT, got Linear": lambda: cv.acdc(torch.nn.Linear(2, 2), pairs),
        "images_at_once is 0, expected ≥ 1": lambda: cv.acdc(vit, pairs, images_at_once=0),
        "images_at_once is 1.5, expected a whole number": lambda: cv.acdc(vit, pairs, images_at_once=1.5),
        "clean holds no image": lambda: cv.acdc(vit, cv.Pairs(clean=pairs.clean[:0], corrupt=pairs.corrupt[:0])),
        "needs reference images": lambda: cv.acdc(vit, pairs, ablation="mean"),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_a_model_without_blocks_has_one_edge():
    vit = random_vit(cv.ViTConfig(**TINY, heads=(), mlp_width=(), head_width=(), pooling="mean"))
    circuit = cv.acdc(vit, random_pairs(vit, 3), tau=1e-6)
    assert circuit.edges == ("embed->logits",)


@pytest.mark.parametrize("qkv", ["split", "joint"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_plain_form_decides_like_the_engine_and_the_oracle(ablation, qkv):
    vit = random_vit(shape("ragged"), seed=13)
    pairs, reference = random_pairs(vit, 3), random_images(vit, 4, seed=50)
    wanted = {"ablation": ablation, "qkv": qkv, "reference": reference}
    for tau, circuit in telling_circuits(vit, pairs, 2, **wanted).items():
        rises = reference_acdc(vit, pairs, tau=tau, **wanted)
        assert tuple(rises) == circuit.edges == oracles.acdc(vit, pairs, tau, **wanted)
        assert rises == pytest.approx(circuit.scores, abs=1e-10)
