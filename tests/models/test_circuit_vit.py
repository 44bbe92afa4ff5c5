"""Edge circuits compiled to a model of their own, against whole hooked runs."""

import subprocess
import sys

import oracles
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import SHAPES, agree, random_images, random_pairs, random_vit, shape
from small_circuits import compiled, some_circuit

import circuitvit as cv
from circuitvit.compiler import compiling
from circuitvit.graph.edge_graph import edge_names_of
from circuitvit.measure.models.cost import counted_macs, vit_macs
from circuitvit.models.circuit_plan import block_macs

DRAWS = 220


def test_random_circuits_of_random_models_compute_what_hooked_runs_compute():
    """At least half of them keep 1–50% of the edges and a path from embed to logits."""
    telling, errors = 0, []

    @settings(
        max_examples=DRAWS, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        name=st.sampled_from(sorted(SHAPES)),
        seed=st.integers(0, 10**6),
        share=st.sampled_from([0.03, 0.1, 0.15, 0.2, 0.25, 0.3, 0.33, 0.36, 0.4, 0.7, 1.0]),
        ablation=st.sampled_from(["zero", "mean"]),
        qkv=st.sampled_from(["split", "split", "split", "joint"]),
    )
    def draw(name, seed, share, ablation, qkv):
        nonlocal telling
        vit = random_vit(shape(name), seed=seed % 7)
        pairs, reference = random_pairs(vit, 3, seed % 5), random_images(vit, 5, seed=3)
        circuit = some_circuit(vit, seed, share, path=True, qkv=qkv)
        small = compiled(vit, circuit, ablation, reference)
        ablated = oracles.ablated_values(vit, pairs, ablation, reference)
        expected = oracles.circuit_logits(vit, circuit.edges, pairs.clean, ablated, qkv)
        with torch.no_grad():
            errors.append(float((small(pairs.clean) - expected).abs().max()))
        assert errors[-1] <= 1e-9 * max(1.0, float(expected.abs().max()))
        share_kept = len(circuit) / len(edge_names_of(vit.config, qkv))
        varies = float(expected.std(dim=0).max()) > 1e-6
        telling += 0.01 <= share_kept <= 0.5 and varies

    draw()
    assert len(errors) >= 200
    assert telling >= len(errors) / 2
    assert max(errors) < 1e-10


@pytest.mark.parametrize("pooling", ["uniform", "mean"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_circuits_from_eap_acdc_and_random_ones_compile(pooling, ablation):
    vit = random_vit(shape(pooling, depth=3), seed=4)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 6, seed=2)
    options = {"ablation": ablation, "reference": reference}
    scores = cv.eap(vit, pairs, **options)
    found = {
        "acdc": cv.acdc(vit, pairs, tau=0.03, **options),
        "eap": scores.greedy(len(scores) // 5),
        "top": scores.top(len(scores) // 2),
        "random": cv.eap(vit, pairs, method="random", **options).greedy(20),
    }
    for method, circuit in found.items():
        small = compiled(vit, circuit, ablation, reference)
        expected = cv.run_circuit(vit, circuit, pairs, **options)
        with torch.no_grad():
            assert torch.allclose(small(pairs.clean), expected, rtol=0, atol=1e-10), method


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_single_precision_stays_within_the_tolerance(ablation, share):
    vit = random_vit(shape(depth=3), seed=1, dtype=torch.float32)
    images, reference = random_images(vit, 5, seed=1), random_images(vit, 9, seed=2)
    circuit = some_circuit(vit, 5, share, path=True)
    small = compiled(vit, circuit, ablation, reference)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    expected = cv.run_circuit(vit, circuit, images, ablation=ablation, reference=reference)
    with torch.no_grad():
        error = float((small(images) - expected).abs().max())
    assert error <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_full_circuit_is_the_model_with_one_copy_a_sub_layer():
    vit = random_vit(shape(depth=3), seed=2)
    images = random_images(vit, 4)
    everything = cv.Circuit(vit.config, edge_names_of(vit.config))
    for ablation in ("zero", "mean"):
        small = compiled(vit, everything, ablation, images)
        with torch.no_grad():
            assert torch.allclose(small(images), vit(images), rtol=0, atol=1e-12)
        assert [len(block.projections) for block in small.plan.blocks] == [1, 1, 2]
        assert [len(block.writes) for block in small.plan.blocks] == [1, 1, 1]
        assert all(len(read.values) <= 2 for b in small.plan.blocks for read in b.reads())
        numbers = sum(p.numel() for p in small.parameters())
        assert numbers <= sum(p.numel() for p in vit.parameters()) + 7 * vit.config.width


@pytest.mark.parametrize("name", SHAPES)
def test_macs_of_the_plan_are_those_that_torch_counts(name):
    vit = random_vit(shape(name), seed=2)
    config = vit.config
    for seed in range(6):
        circuit = some_circuit(vit, seed, 0.15 * (seed + 1), path=True)
        small = compiled(vit, circuit, "mean", random_images(vit, 4))
        embed = config.patches * config.width * config.channels * config.patch_size**2
        ends = embed + config.pooled * config.width * config.classes
        planned = ends + sum(block_macs(config, block) for block in small.plan.blocks)
        image = (config.channels, config.image_size, config.image_size)
        if 0 not in small.plan.last_uses():
            planned -= embed
        assert counted_macs(small, image) == planned <= vit_macs(config)


def test_a_saved_model_is_the_same_and_needs_nothing_that_only_discovery_needs(tmp_path):
    vit = random_vit(shape("registers, q/k norm, no qkv bias, tanh"), seed=2)
    images = random_images(vit, 3)
    small = compiled(vit, some_circuit(vit, 3, 0.3, path=True), "mean", images)
    small.save_pretrained(tmp_path)
    loaded = cv.CircuitViT.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.plan == small.plan
    assert loaded.config == small.config == vit.config
    assert loaded.explain() == small.explain()
    with torch.no_grad():
        assert agree(loaded(images), small(images))
    torch.save(images, tmp_path / "images.pt")
    torch.save(small(images).detach(), tmp_path / "logits.pt")
    code = (
        "import sys, torch\n"
        "for name in ('transformer_lens', 'networkx', 'plotly', 'datasets', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import circuitvit as cv\n"
        f"small = cv.CircuitViT.from_pretrained({str(tmp_path)!r})\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)\n"
        f"logits = torch.load({str(tmp_path / 'logits.pt')!r}, weights_only=True)\n"
        "assert torch.allclose(small(images), logits, atol=1e-12)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_parameter_gets_a_gradient_and_training_lowers_the_loss():
    vit = random_vit(shape(depth=3), seed=3).train()
    images = random_images(vit, 8)
    labels = torch.arange(8) % vit.config.classes
    small = compiled(vit, some_circuit(vit, 11, 0.4, path=True), "mean", images)
    assert small.training
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(small(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            without = {n for n, p in small.named_parameters() if p.grad is None}
            assert not without
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_callers_model_stays_as_it_is():
    vit = random_vit(shape(), seed=2, dtype=torch.float32)
    before, grads = vit.fingerprint(), [p.requires_grad for p in vit.parameters()]
    small = compiled(vit, some_circuit(vit, 3, 0.5, path=True))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert vit.fingerprint() == before
    assert [p.requires_grad for p in vit.parameters()] == grads


@pytest.mark.parametrize("pooling", ["uniform", "mean", "mean, fc_norm, no class token"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_circuit_without_a_path_warns_and_gives_the_same_logits_for_every_image(
    pooling, ablation
):
    vit = random_vit(shape(pooling), seed=2)
    images = random_images(vit, 4)
    circuit = cv.Circuit(vit.config, ["embed->m0", "m0->a1.h0.v"])
    with pytest.warns(UserWarning, match="no kept path leads from embed to logits"):
        small = cv.compile(vit, circuit, level="edge", ablation=ablation, reference=images)
    expected = cv.run_circuit(vit, circuit, images, ablation=ablation, reference=images)
    with torch.no_grad():
        logits = small(images)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
    assert agree(logits, logits[:1].expand(4, -1))
    assert sum(block_macs(vit.config, block) for block in small.plan.blocks) == 0


def test_a_wrong_result_is_not_returned(monkeypatch):
    def slightly_wrong(shared, dtype):
        small = compiling_lower(shared, dtype)
        with torch.no_grad():
            small.ends.head.bias[0] += 1e-3
        return small

    compiling_lower = compiling.lower
    monkeypatch.setattr(compiling, "lower", slightly_wrong)
    vit = random_vit(shape(), seed=2)
    with pytest.raises(cv.CircuitError, match="differs from the masked run by 0.001"):
        compiled(vit, some_circuit(vit, 3, 0.5, path=True))


def test_models_of_one_kind_are_not_taken_for_the_other(tmp_path, as_users_call):
    vit = random_vit(shape(), seed=2)
    small = compiled(vit, some_circuit(vit, 3, 0.5, path=True))
    small.save_pretrained(tmp_path / "edge")
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(cv.CircuitError, match=r"CircuitViT\.from_pretrained"):
        cv.load_vit(tmp_path / "edge")
    with pytest.raises(cv.CircuitError, match=r"circuitvit\.load_vit"):
        cv.CircuitViT.from_pretrained(tmp_path / "vit")
    with pytest.raises(cv.CircuitError, match=r"got CircuitViT.*model that it was compiled from"):
        cv.eap(small, random_pairs(vit, 2))
    with pytest.raises(cv.CircuitError, match="this model expects"):
        small(torch.zeros(2, 3, 9, 9).double())
    with pytest.raises(cv.CircuitError, match=r"parts have no price.*explain\(\)"):
        cv.savings(vit, small)
    shape_now = small.shape_as_dict()
    shape_now["plan"]["logits"]["values"] = [99]
    with pytest.raises(cv.CircuitError, match="read before they are made"):
        cv.CircuitViT.of_shape(shape_now)
    with pytest.raises(cv.CircuitError, match="not the plan of a compiled circuit"):
        cv.CircuitViT.of_shape({**small.shape_as_dict(), "plan": {"blocks": [{}]}})


def test_a_compiled_circuit_shows_itself_as_a_summary():
    vit = random_vit(shape())
    names = ["embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "a0.h0->m1", "m1->logits"]
    exact = compiled(vit, cv.Circuit(vit.config, names))
    count = sum(parameter.numel() for parameter in exact.parameters())
    assert repr(exact) == (
        "CircuitViT(2 blocks, 1/0 heads, width 8, MLP 0/6, images 1×4×4 in patches of 2×2, "
        f"4 classes, {count:,} parameters)"
    )
    assert "(projections)" in torch.nn.Module.__repr__(exact)
