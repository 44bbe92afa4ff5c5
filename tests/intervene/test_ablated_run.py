import oracles
import pytest
import torch
from random_models import SHAPES, agree, random_images, random_pairs, random_vit, shape
from torch.nn import functional as F

import circuitvit as cv
from circuitvit.graph.edge_graph import edge_names_of

ABLATIONS = ("patch", "zero", "mean")


def full_circuit(vit, qkv="split"):
    return cv.Circuit(vit.config, edge_names_of(vit.config, qkv), qkv=qkv)


def random_circuit(vit, share, seed, qkv="split"):
    generator = torch.Generator().manual_seed(seed)
    names = edge_names_of(vit.config, qkv)
    kept = torch.rand(len(names), generator=generator) < share
    return cv.Circuit(vit.config, [n for n, k in zip(names, kept, strict=True) if k], qkv=qkv)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_full_circuit_changes_nothing(name, ablation):
    vit = random_vit(shape(name))
    pairs, reference = random_pairs(vit, 5), random_images(vit, 7, seed=3)
    logits = cv.run_circuit(vit, full_circuit(vit), pairs, ablation=ablation, reference=reference)
    assert torch.allclose(logits, vit(pairs.clean), rtol=0, atol=1e-11)


def test_a_full_circuit_changes_nothing_in_single_precision():
    vit = random_vit(shape(), dtype=torch.float32)
    pairs = random_pairs(vit, 5)
    error = cv.run_circuit(vit, full_circuit(vit), pairs) - vit(pairs.clean)
    assert error.abs().max() < 1e-5


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("qkv", ["split", "joint"])
def test_a_random_circuit_equals_a_hooked_run_with_every_input_written_anew(name, ablation, qkv):
    vit = random_vit(shape(name), seed=1)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 6, seed=3)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    for seed, share in enumerate((0.0, 0.2, 0.5, 0.9)):
        circuit = random_circuit(vit, share, seed, qkv)
        expected = oracles.circuit_logits(vit, circuit.edges, pairs.clean, ablated, qkv)
        got = cv.run_circuit(vit, circuit, pairs, ablation=ablation, reference=reference)
        assert torch.allclose(got, expected, rtol=0, atol=1e-10)


def test_the_comparison_fails_when_one_edge_head_or_bias_is_changed():
    vit = random_vit(shape(), seed=1)
    pairs = random_pairs(vit, 4)
    circuit = random_circuit(vit, 0.7, 0)
    expected = cv.run_circuit(vit, circuit, pairs)
    on_path = next(e for e in circuit.edges if e.endswith("->logits"))
    without = circuit.keeping(set(circuit.edges) - {on_path})
    assert (cv.run_circuit(vit, without, pairs) - expected).abs().max() > 1e-3
    for name in (
        "blocks.0.output_bias",
        "blocks.1.attention.out.weight",
        "head.bias",
        "blocks.1.ln1.bias",
    ):
        other = random_vit(shape(), seed=1)
        with torch.no_grad():
            other.get_parameter(name).mul_(1.1)
        assert (cv.run_circuit(other, circuit, pairs) - expected).abs().max() > 1e-5, name


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_two_block_model_by_hand(ablation):
    """Every sum written out, for a circuit that keeps some edges of each kind."""
    config = cv.ViTConfig(
        image_size=4, patch_size=2, channels=1, classes=3, width=6, depth=2, heads=1, head_width=3,
        mlp_width=5,
    )  # fmt: skip
    vit = random_vit(config, seed=5)
    pairs, reference = random_pairs(vit, 2), random_images(vit, 3, seed=9)
    kept = ["embed->a0.h0.q", "embed->a0.h0.v", "a0.h0->m0", "m0->a1.h0.k", "a0.h0->a1.h0.v",
            "embed->m1", "a1.h0->m1", "m1->logits", "a0.h0->logits"]  # fmt: skip

    def head(block, q_in, k_in, v_in):
        layer, attention = vit.blocks[block], vit.blocks[block].attention
        weight = attention.qkv.weight.view(3, 3, 6)
        bias = attention.qkv.bias.view(3, 3)
        q, k, v = (layer.ln1(x) @ weight[i].T + bias[i] for i, x in enumerate((q_in, k_in, v_in)))
        pattern = (q @ k.transpose(1, 2) / 3**0.5).softmax(-1)
        return pattern @ v @ attention.out.weight.T

    def mlp(block, x):
        layer = vit.blocks[block]
        hidden = F.gelu(F.linear(layer.ln2(x), layer.mlp.fc1.weight, layer.mlp.fc1.bias))
        return F.linear(hidden, layer.mlp.fc2.weight, layer.mlp.fc2.bias)

    def untouched(images):
        e = vit.embed(images)
        a0 = head(0, e, e, e)
        x = e + a0 + vit.blocks[0].output_bias
        m0 = mlp(0, x)
        x = x + m0
        a1 = head(1, x, x, x)
        m1 = mlp(1, x + a1 + vit.blocks[1].output_bias)
        return e, a0, m0, a1, m1

    values = untouched(pairs.corrupt if ablation == "patch" else reference)
    if ablation == "zero":
        values = tuple(torch.zeros_like(v[:1]) for v in values)
    if ablation == "mean":
        values = tuple(v.mean(0, keepdim=True) for v in values)
    te, ta0, tm0, ta1, _ = values
    b0, b1 = vit.blocks[0].output_bias, vit.blocks[1].output_bias

    e = vit.embed(pairs.clean)
    a0 = head(0, e, te.expand_as(e), e)
    m0 = mlp(0, te + a0 + b0)
    a1 = head(1, te + ta0 + tm0 + b0 + 0 * e, te + ta0 + m0 + b0, te + a0 + tm0 + b0)
    m1 = mlp(1, e + ta0 + tm0 + a1 + b0 + b1)
    x = te + a0 + tm0 + ta1 + m1 + b0 + b1
    expected = F.linear(vit.final_norm(x)[:, 0], vit.head.weight, vit.head.bias)
    got = cv.run_circuit(vit, kept, pairs, ablation=ablation, reference=reference)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_an_empty_circuit_under_patch_is_the_model_on_the_corrupt_images():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 4)
    got = cv.run_circuit(vit, [], pairs)
    assert torch.allclose(got, vit(pairs.corrupt), rtol=0, atol=1e-11)


def test_many_images_are_run_in_chunks_with_the_same_result():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 150)
    circuit = random_circuit(vit, 0.5, 0)
    whole = cv.run_circuit(vit, circuit, pairs)
    parts = [cv.run_circuit(vit, circuit, pairs.subset(slice(i, i + 50))) for i in (0, 50, 100)]
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-12)


def test_a_masked_vit_computes_what_run_circuit_does():
    vit = random_vit(shape("ragged"))
    images, reference = random_images(vit, 4), random_images(vit, 6, seed=3)
    circuit = random_circuit(vit, 0.5, 0)
    for ablation in ("zero", "mean"):
        masked = cv.MaskedViT(vit, circuit, ablation=ablation, reference=reference)
        expected = cv.run_circuit(vit, circuit, images, ablation=ablation, reference=reference)
        assert agree(masked(images), expected)
    with pytest.raises(cv.CircuitError, match="needs corrupt images"):
        cv.MaskedViT(vit, circuit, ablation="patch")


def test_nothing_of_the_callers_is_changed():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 4)
    before, data = vit.fingerprint(), pairs.fingerprint()
    modules = {name: dict(module.__dict__) for name, module in vit.named_modules()}
    cv.run_circuit(vit, random_circuit(vit, 0.5, 0), pairs)
    cv.eap(vit, pairs)
    cv.acdc(vit, pairs, tau=0.1)
    cv.HookedViT(vit)
    assert (vit.fingerprint(), pairs.fingerprint()) == (before, data)
    assert all(p.grad is None for p in vit.parameters())
    for name, module in vit.named_modules():
        assert module.__dict__.keys() == modules[name].keys(), name


def bad_calls():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 3)
    circuit = full_circuit(vit)
    other = cv.Circuit(shape(heads=(2, 1)), [])
    nan = random_vit(shape())
    with torch.no_grad():
        nan.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    run = cv.run_circuit
    return {
        "expects \\[image, 1, 4, 4\\]": lambda: run(vit, circuit, torch.zeros(2, 1, 8, 8), ablation="zero"),
        "weights torch.float64": lambda: run(vit, circuit, torch.zeros(2, 1, 4, 4), ablation="zero"),
        "edges do not exist .*embed->a9": lambda: run(vit, ["embed->a9.h0.q"], pairs),
        "belongs to another model": lambda: run(vit, other, pairs),
        "needs reference images": lambda: run(vit, circuit, pairs, ablation="mean"),
        "expected one of .*patch": lambda: run(vit, circuit, pairs, ablation="noise"),
        "needs corrupt images": lambda: run(vit, circuit, pairs.clean),
        "weights hold NaN": lambda: run(nan, circuit, pairs),
        "the reference images hold NaN": lambda: run(
            vit, circuit, pairs, ablation="mean", reference=pairs.clean / 0
        ),
        "reference is a list": lambda: run(vit, circuit, pairs, ablation="mean", reference=[1]),
        "clean images hold NaN": lambda: run(vit, circuit, pairs.clean / 0, ablation="zero"),
        "expected a circuitvit.ViT": lambda: run(torch.nn.Identity(), circuit, pairs),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_a_circuit_of_other_weights_warns():
    vit, other = random_vit(shape()), random_vit(shape(), seed=7)
    pairs = random_pairs(vit, 3)
    circuit = cv.acdc(vit, pairs, tau=0.01)
    cv.run_circuit(vit, circuit, pairs)
    with pytest.warns(UserWarning, match="other weights of the same shape"):
        cv.run_circuit(other, circuit, pairs)
    wider = random_vit(shape(mlp_width=8))
    with pytest.warns(UserWarning, match="a model of another shape that has the same edges"):
        cv.run_circuit(wider, circuit, pairs)


def test_no_public_function_draws_from_torchs_generator(tmp_path):
    vit = random_vit(shape())
    pairs, images = random_pairs(vit, 4), random_images(vit, 4)
    vit.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    circuit = cv.acdc(vit, pairs, tau=1e-3)
    for method in ("eap", "eap-ig-inputs", "exact", "random"):
        cv.eap(vit, pairs, method=method)
    cv.run_circuit(vit, circuit, pairs)
    cv.compile(vit, cv.eap(vit, pairs).greedy(20), ablation="mean", reference=images)
    cv.prune_heads(vit, {0: [0]})
    cv.prune_mlp(vit, {0: [0]})
    cv.retain_circuit(vit, circuit)
    cv.load_vit(tmp_path)
    cv.load_vit(vit)
    cv.HookedViT(vit)
    cv.faithfulness(vit, circuit, pairs)
    cv.measure({"a": vit}, images, torch.zeros(4).long(), batches=(1,), rounds=3)
    assert torch.equal(torch.get_rng_state(), before)
