import numpy as np
import oracles
import pytest
import torch
from random_models import SHAPES, linear_vit, random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of

ABLATIONS = ("patch", "zero", "mean")


def largest_error(got, expected):
    """The largest difference as a share of the largest score."""
    assert list(got) == list(expected)
    differences = [abs(got[name] - float(expected[name])) for name in got]
    return max(differences) / max(abs(float(score)) for score in expected.values())


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_eap_equals_autograd_at_the_hook_points(name, ablation):
    vit = random_vit(shape(name), seed=3)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 5, seed=9)
    for metric in ("logit_difference", "cross_entropy"):
        expected = oracles.eap(vit, pairs, ablation, metric, reference)
        got = cv.eap(vit, pairs, metric=metric, ablation=ablation, reference=reference)
        assert largest_error(got, expected) < 1e-9


@pytest.mark.parametrize("name", SHAPES)
def test_eap_in_single_precision_is_close_to_the_oracle(name):
    """The oracle runs in double precision, with weights and images that are single."""
    vit = random_vit(shape(name), seed=3, dtype=torch.float32)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 5, seed=9)
    got = {a: cv.eap(vit, pairs, ablation=a, reference=reference) for a in ABLATIONS}
    exact = vit.double()
    pairs, reference = pairs.to(dtype=torch.float64), reference.double()
    for ablation, scores in got.items():
        expected = oracles.eap(exact, pairs, ablation, "logit_difference", reference)
        assert largest_error(scores, expected) < 1e-5


@pytest.mark.parametrize(
    ("method", "shares"),
    [("eap-ig-inputs", (0.0, 0.25, 0.5, 0.75)), ("clean-corrupted", (0.0, 1.0))],
)
@pytest.mark.parametrize("metric", ["logit_difference", "kl"])
def test_the_interpolating_methods_equal_autograd_at_their_points(method, shares, metric):
    vit = random_vit(shape(), seed=4)
    pairs = random_pairs(vit, 3)
    expected = oracles.eap(vit, pairs, "patch", metric, shares=shares)
    got = cv.eap(vit, pairs, metric=metric, method=method, steps=4)
    assert largest_error(got, expected) < 1e-9


def test_the_comparison_fails_when_one_bias_is_changed():
    vit, other = random_vit(shape(), seed=3), random_vit(shape(), seed=3)
    pairs = random_pairs(vit, 4)
    with torch.no_grad():
        other.blocks[1].mlp.fc1.bias[0] += 0.05
    expected = oracles.eap(other, pairs, "patch", "logit_difference")
    assert largest_error(cv.eap(vit, pairs), expected) > 1e-4


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_eap_equals_finite_differences(ablation):
    """The score is the slope of the loss as the edge moves from its own value to the ablated one."""
    vit = random_vit(shape(), seed=5)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 5, seed=9)
    hooked = cv.HookedViT(vit)
    clean = oracles.write_values(hooked, pairs.clean)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    full = vit(pairs.clean)

    def slope(edge, step=3e-4):
        writer, reader = edge.split("->")
        name, head = hooked.read_hook(reader)
        move = (ablated[writer] - clean[writer]).detach()

        def loss(share):
            def shift(tensor, hook):
                tensor = tensor.clone()
                target = tensor if head is None else tensor[:, :, head]
                target += share * move
                return tensor

            logits = hooked.run_with_hooks(pairs.clean, fwd_hooks=[(name, shift)])
            return oracles.loss("cross_entropy", logits, pairs, full).mean().detach()

        # Richardson extrapolation of central differences: the error is of fourth order.
        one, two = ((loss(h) - loss(-h)) / (2 * h) for h in (step, 2 * step))
        return (4 * one - two) / 3

    got = cv.eap(vit, pairs, metric="cross_entropy", ablation=ablation, reference=reference)
    assert largest_error(got, {edge: slope(edge) for edge in got}) < 1e-9


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_exact_scores_equal_one_hooked_run_an_edge(ablation):
    vit = random_vit(shape("ragged"), seed=6)
    pairs, reference = random_pairs(vit, 3), random_images(vit, 5, seed=9)
    for metric in ("kl", "logit_difference"):
        expected = oracles.exact_scores(vit, pairs, ablation, metric, reference)
        got = cv.eap(
            vit, pairs, method="exact", metric=metric, ablation=ablation, reference=reference
        )
        assert largest_error(got, expected) < 1e-9


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_on_a_linear_model_eap_is_exact(ablation):
    vit = linear_vit()
    pairs, reference = random_pairs(vit, 3), random_images(vit, 5, seed=9)
    approximate, exact = (
        cv.eap(vit, pairs, method=method, ablation=ablation, reference=reference)
        for method in ("eap", "exact")
    )
    assert max(abs(score) for score in exact.values()) > 0.1
    assert largest_error(approximate, exact) < 1e-8
    other = random_vit(shape(), seed=7)
    approximate, exact = (cv.eap(other, pairs, method=method) for method in ("eap", "exact"))
    assert largest_error(approximate, exact) > 1e-3  # not so on a real one


PLANTED = {"embed->a0.h0.v", "a0.h0->m1", "m1->logits"}


def planted_vit():
    """Pixels → head a0.h0 → MLP m1 → logits; all else writes nothing.

    Each step has a pair of dimensions of its own, written as (+1, −1) so that means stay 0, and a
    large constant keeps every LayerNorm's deviation nearly fixed.
    """
    config = cv.ViTConfig(
        image_size=2, patch_size=1, channels=1, classes=2, width=16, depth=2, heads=2, head_width=4,
        mlp_width=4,
    )  # fmt: skip
    vit, big = cv.ViT(config).double(), 100.0
    pairs = torch.zeros(4, 16).double()
    for index in range(4):
        pairs[index, 2 * index], pairs[index, 2 * index + 1] = 1, -1
    pixels, moved, decided, constant = pairs
    deviation = big * (2 / 16) ** 0.5
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.zero_()
            if ("ln" in name or "norm" in name) and name.endswith("weight"):
                parameter.fill_(1)
        vit.patch.weight.copy_(pixels.view(16, 1, 1, 1))
        vit.positions.copy_(big * constant.expand(5, -1))
        head = vit.blocks[0].attention
        head.qkv.weight[2 * 8].copy_(deviation * pixels)  # the first row of head 0's value
        head.out.weight[:, 0].copy_(moved)
        mlp = vit.blocks[1].mlp
        mlp.fc1.weight[0].copy_(deviation * moved)
        mlp.fc2.weight[:, 0].copy_(decided)
        vit.head.weight[0].copy_(2 * deviation * decided)
        vit.head.weight[1].copy_(-2 * deviation * decided)
    return vit


def planted_pairs():
    return cv.Pairs(
        clean=torch.ones(2, 1, 2, 2).double(),
        corrupt=-torch.ones(2, 1, 2, 2).double(),
        labels=torch.zeros(2).long(),
        corrupt_labels=torch.ones(2).long(),
    )


def test_the_planted_edges_and_no_others_are_found():
    vit, pairs = planted_vit(), planted_pairs()
    moved = vit(pairs.clean) - vit(pairs.corrupt)
    assert moved.abs().max() > 3
    assert set(cv.acdc(vit, pairs, tau=0.01).edges) == PLANTED
    for method in ("eap", "eap-ig-inputs", "clean-corrupted", "exact"):
        scores = cv.eap(vit, pairs, method=method)
        assert set(scores.top(3).edges) == PLANTED
        weakest = min(abs(scores[edge]) for edge in PLANTED)
        others = max(abs(scores[edge]) for edge in scores if edge not in PLANTED)
        assert weakest > 50 * others, method
        assert all(scores[edge] > 0 for edge in PLANTED)
        assert set(scores.greedy(3).edges) == PLANTED
    kept = cv.acdc(vit, pairs, tau=0.01)
    assert torch.allclose(cv.run_circuit(vit, kept, pairs), vit(pairs.clean), atol=0.02)


@pytest.mark.parametrize("method", ["eap", "exact"])
def test_joint_readers_score_their_parts_together(method):
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 3)
    joint = cv.eap(vit, pairs, method=method, qkv="joint")
    assert tuple(joint) == edge_names_of(vit.config, "joint")
    split = cv.eap(vit, pairs, method=method)
    if method == "eap":
        for edge, score in joint.items():
            parts = [edge] if edge in split else [f"{edge}.{part}" for part in "qkv"]
            assert score == pytest.approx(sum(split[part] for part in parts), abs=1e-12)
    else:
        edge = "embed->a1.h0"
        names = [e for e in split if not e.startswith(f"{edge}.")]
        logits = cv.run_circuit(vit, names, pairs)
        full = oracles.loss("logit_difference", vit(pairs.clean), pairs, None).mean()
        exact = oracles.loss("logit_difference", logits, pairs, None).mean() - full
        assert joint[edge] == pytest.approx(float(exact.detach()), abs=1e-10)


def test_a_nodes_score_is_the_slope_of_moving_all_it_writes():
    """By autograd at the write hooks, which knows nothing of edges."""
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 3)
    scores = cv.eap(vit, pairs, level="node")
    hooked = cv.HookedViT(vit)
    values = oracles.write_values(hooked, pairs.corrupt)
    clean = oracles.write_values(hooked, pairs.clean)
    for unit, score in scores.items():
        name, head = hooked.write_hook(unit)
        captured = []

        def capture(tensor, hook, captured=captured):
            captured.append(tensor.clone().requires_grad_(True))
            return captured[0]

        logits = hooked.run_with_hooks(pairs.clean, fwd_hooks=[(name, capture)])
        loss = oracles.loss("logit_difference", logits, pairs, None).sum()
        gradient = torch.autograd.grad(loss, captured)[0]
        gradient = gradient if head is None else gradient[:, :, head]
        expected = float(((values[unit] - clean[unit]) * gradient).sum().detach()) / 3
        assert score == pytest.approx(expected, abs=1e-10)


def test_a_blocks_score_is_the_slope_of_moving_all_it_adds():
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 3)
    scores = cv.eap(vit, pairs, level="block")
    hooked = cv.HookedViT(vit)
    values = oracles.write_values(hooked, pairs.corrupt)
    clean = oracles.write_values(hooked, pairs.clean)
    for block in (0, 1):
        inside = [unit for unit in clean if unit[1:].split(".")[0] == str(block)]
        captured = []

        def capture(tensor, hook, captured=captured):
            captured.append(tensor.clone().requires_grad_(True))
            return captured[0]

        hook = (f"blocks.{block}.hook_resid_post", capture)
        logits = hooked.run_with_hooks(pairs.clean, fwd_hooks=[hook])
        loss = oracles.loss("logit_difference", logits, pairs, None).sum()
        move = sum(values[unit] - clean[unit] for unit in inside)
        expected = float((move * torch.autograd.grad(loss, captured)[0]).sum().detach()) / 3
        assert scores[f"block{block}"] == pytest.approx(expected, abs=1e-10)


def test_exact_node_scores_equal_hooked_runs():
    vit = random_vit(shape(), seed=8)
    pairs = random_pairs(vit, 3)
    scores = cv.eap(vit, pairs, level="node", method="exact", metric="kl")
    ablated, full = oracles.ablated_values(vit, pairs, "patch"), vit(pairs.clean).detach()
    for unit, score in scores.items():
        kept = [e for e in oracles.edges(vit.config, "split") if not e.startswith(f"{unit}->")]
        logits = oracles.circuit_logits(vit, kept, pairs.clean, ablated)
        assert score == pytest.approx(
            float(oracles.loss("kl", logits, pairs, full).mean()), abs=1e-10
        )


def test_random_scores_are_seeded_and_cover_every_edge():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 2)
    one, same, other = (cv.eap(vit, pairs, method="random", seed=seed) for seed in (1, 1, 2))
    assert dict(one) == dict(same) != dict(other)
    assert tuple(one) == edge_names_of(vit.config)
    assert one.provenance.seed == 1


def bad_calls():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    eap, nan, huge = cv.eap, random_vit(shape()), random_vit(shape())
    bare = random_vit(shape("mean, fc_norm, no class token"))
    with torch.no_grad():
        nan.head.bias[0] = float("nan")
        huge.head.weight.mul_(1e307)
    return {
        "plain eap would.*eap-ig-inputs.*logit_difference": lambda: eap(vit, pairs, metric="kl"),
        "plain gim would": lambda: eap(vit, pairs, method="gim", metric="kl"),
        "plain relp would": lambda: eap(vit, pairs, method="relp", metric="kl"),
        "accuracy has no gradient": lambda: eap(vit, pairs, metric="accuracy"),
        "method is 'eap-ig', expected one of": lambda: eap(vit, pairs, method="eap-ig"),
        "steps is 0, expected ≥ 1": lambda: eap(vit, pairs, method="eap-ig-inputs", steps=0),
        "steps is -3, expected ≥ 1": lambda: eap(vit, pairs, method="eap-ig-activations", steps=-3),
        "clean holds no image": lambda: eap(vit, cv.Pairs(clean=pairs.clean[:0])),
        r"returned a tensor of shape \(\), expected a tensor with one value an image": lambda: eap(vit, pairs, metric=lambda x, p: x.mean()),
        "returned NaN or infinity": lambda: eap(vit, pairs, metric=lambda x, p: x[:, 0] * float("nan")),
        "level is 'token', expected one of": lambda: eap(vit, pairs, level="token"),
        "positions is 'each', expected None": lambda: eap(vit, pairs, positions="each"),
        "positions go with level='edge' or 'node'": lambda: eap(vit, pairs, level="block", positions="class/patch"),
        "has no class token": lambda: eap(bare, random_pairs(bare), positions="class/patch"),
        "autocast is 'fp8', expected None": lambda: eap(vit, pairs, autocast="fp8"),
        "autocast needs float32 weights": lambda: eap(vit, pairs, autocast="bf16"),
        "autocast goes with the gradient methods": lambda: eap(vit, pairs, method="random", autocast="bf16"),
        "scores whole edges, nodes and blocks": lambda: eap(vit, pairs, method="exact", level="neuron"),
        "moves whole MLPs": lambda: eap(vit, pairs, method="eap-ig-activations", level="neuron"),
        "takes ablation='patch' only": lambda: eap(vit, pairs, method="eap-ig-inputs", ablation="zero"),
        "needs reference images": lambda: eap(vit, pairs, ablation="mean"),
        "the metric has no gradient": lambda: eap(vit, pairs, metric=lambda x, p: x.detach()[:, 0]),
        "steps is 2.5, expected a whole number": lambda: eap(vit, pairs, steps=2.5),
        "weights hold NaN": lambda: eap(nan, pairs),
        "reference images hold NaN": lambda: eap(vit, pairs, ablation="mean", reference=pairs.clean / 0),
        "scores are NaN or infinite": lambda: eap(huge, pairs),
        "became NaN or infinite": lambda: eap(huge, pairs, method="exact"),
        "asked for 47 edges, expected 0 to 46: there are 46": lambda: eap(vit, pairs).top(47),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_kl_is_refused_because_its_gradient_really_is_zero():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    scores = oracles.eap(vit, pairs, "patch", "kl")
    assert max(abs(float(score)) for score in scores.values()) < 1e-12


def test_means_are_taken_once_however_many_images_there_are(monkeypatch):
    from circuitvit.intervene import task as module

    calls, real = [], module.ablated_writes
    monkeypatch.setattr(module, "ablated_writes", lambda *a, **k: calls.append(1) or real(*a, **k))
    vit = random_vit(shape())
    cv.eap(vit, random_pairs(vit, 40), ablation="mean", reference=random_images(vit, 5))
    assert len(calls) == 1


def test_numbers_of_numpy_and_torch_are_taken_and_saved(tmp_path, as_users_call):
    vit = random_vit(shape())
    pairs = random_pairs(vit, 2)
    cv.acdc(vit, pairs, tau=np.float32(0.25)).save(tmp_path / "a.json")
    assert cv.Circuit.load(tmp_path / "a.json").provenance.tau == 0.25
    scores = cv.eap(vit, pairs, method="eap-ig-inputs", steps=np.int64(2), seed=torch.tensor(3))
    scores.top(np.int64(5)).save(tmp_path / "b.json")
    assert cv.Circuit.load(tmp_path / "b.json").provenance.steps == 2


def test_scores_can_be_had_inside_inference_mode():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 2)
    expected = dict(cv.eap(vit, pairs))
    with torch.inference_mode():
        assert dict(cv.eap(vit, pairs)) == expected


def test_an_unused_reference_is_not_recorded():
    vit = random_vit(shape())
    images = random_images(vit, 3)
    used = {a: cv.eap(vit, random_pairs(vit, 2), ablation=a, reference=images) for a in ABLATIONS}
    recorded = {a: scores.provenance.reference is not None for a, scores in used.items()}
    assert recorded == {"patch": False, "zero": False, "mean": True}
