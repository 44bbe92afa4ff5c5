import copy

import oracles
import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from small_circuits import circuit_of_units

import circuitvit as cv
from circuitvit.compiler import compiling
from circuitvit.compiler.validating import sample_images
from circuitvit.graph.edge_graph import units_of
from circuitvit.intervene.surgery import keep_units


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_compiled_model_equals_a_hooked_run_with_removed_units_replaced(name, ablation):
    """Against the oracle, which knows nothing of surgery; 6 shapes × 2 ablations × 6 circuits."""
    vit = random_vit(shape(name), seed=2)
    pairs, reference = random_pairs(vit, 4), random_images(vit, 9, seed=3)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)
    for seed, share in enumerate((0.0, 0.3, 0.5, 0.5, 0.7, 1.0)):
        circuit, units = circuit_of_units(vit, seed, share)
        assert list(circuit.units()) == units
        kept = [
            edge for edge in oracles.edges(vit.config, "split")
            if edge.split("->")[0] in {"embed", *units}
        ]  # fmt: skip
        expected = oracles.circuit_logits(vit, kept, pairs.clean, ablated)
        small = cv.compile(vit, circuit, level="unit", ablation=ablation, reference=reference)
        assert torch.allclose(small(pairs.clean), expected, rtol=0, atol=1e-10)
        assert set(units_of(small.config)) or not units
        assert len(units_of(small.config)) == len(units)


def test_the_comparison_fails_when_one_head_or_bias_is_changed():
    vit = random_vit(shape(), seed=2)
    images = random_images(vit, 4)
    circuit, _ = circuit_of_units(vit, 3)
    small = cv.compile(vit, circuit, ablation="mean", reference=images)
    expected = small(images)
    for name, parameter in small.named_parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter.add_(0.05 * torch.randn(parameter.shape, dtype=parameter.dtype))
            assert (small(images) - expected).abs().max() > 1e-6, name
            parameter.copy_(before)


def test_an_emptied_block_costs_nothing_under_mean_and_keeps_b_o_under_zero():
    vit = random_vit(shape(depth=3), seed=2)
    reference = random_images(vit, 9)
    kept = ["embed->a0.h0.v", "a0.h0->m2", "m2->logits"]
    circuit = cv.Circuit(vit.config, kept)
    small = cv.compile(vit, circuit, ablation="mean", reference=reference)
    assert small.config.heads == (1, 0, 0)
    assert small.config.mlp_width == (0, 0, 6)
    assert small.config.output_bias == (True, False, False)
    assert small.config.attention_constant == (True, False, False)
    assert small.config.mlp_constant == (False, False, False)
    assert not list(small.blocks[1].parameters())
    small = cv.compile(vit, circuit, ablation="zero")
    assert small.config.output_bias == (True, True, True)
    assert not any(small.config.attention_constant + small.config.mlp_constant)
    assert torch.equal(small.blocks[1].output_bias, vit.blocks[1].output_bias)


def test_constants_go_into_the_positions_where_no_sub_layer_comes_before():
    vit = random_vit(shape(), seed=2)
    reference = random_images(vit, 9)
    circuit = cv.Circuit(vit.config, ["embed->m1", "m1->logits"])
    small = cv.compile(vit, circuit, ablation="mean", reference=reference)
    assert list(small.blocks[0].parameters()) == []
    assert not any(small.config.attention_constant + small.config.mlp_constant)
    values = oracles.write_values(cv.HookedViT(vit), reference)
    gone = sum(values[unit].mean(0) for unit in ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1"))
    biases = vit.blocks[0].output_bias + vit.blocks[1].output_bias
    assert torch.allclose(small.positions, vit.positions + gone + biases, atol=1e-12)


def test_the_circuits_own_ablation_restricts_nothing():
    vit = random_vit(shape(), seed=2)
    circuit = cv.eap(vit, random_pairs(vit, 3), ablation="patch").greedy(12)
    assert circuit.provenance.ablation == "patch"
    reference = random_images(vit, 5)
    for ablation in ("zero", "mean"):
        assert cv.compile(vit, circuit, ablation=ablation, reference=reference)


def test_single_precision_and_train_mode_are_kept():
    vit = random_vit(shape(), seed=2, dtype=torch.float32).train()
    circuit, _ = circuit_of_units(vit, 1)
    small = cv.compile(vit, circuit)
    assert small.training
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_a_fresh_model_of_the_same_shape_can_be_made_of_its_config():
    vit = random_vit(shape(), seed=2)
    circuit, _ = circuit_of_units(vit, 3)
    small = cv.compile(vit, circuit, ablation="mean", reference=random_images(vit, 5))
    fresh = cv.ViT(small.config, seed=1)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in small.parameters()]


def test_a_wrong_result_is_not_returned(monkeypatch):
    def slightly_wrong(vit, units):
        small = keep_units(vit, units)
        with torch.no_grad():
            small.head.bias[0] += 1e-3
        return small

    monkeypatch.setattr(compiling, "keep_units", slightly_wrong)
    vit = random_vit(shape(), seed=2)
    circuit, _ = circuit_of_units(vit, 3)
    with pytest.raises(cv.CircuitError, match="differs from the masked run by 0.001"):
        cv.compile(vit, circuit)


def test_the_images_to_verify_on_are_seeded():
    vit = random_vit(shape())
    assert torch.equal(sample_images(vit), sample_images(vit))
    assert sample_images(vit).shape == (8, 1, 4, 4)


def bad_calls():
    vit = random_vit(shape())
    circuit, _ = circuit_of_units(vit, 3)
    images = random_images(vit, 3)
    other = cv.Circuit(shape(heads=(2, 1)), [])
    nan = random_vit(shape())
    with torch.no_grad():
        nan.head.bias[0] = float("nan")
    compile_, scores = cv.compile, cv.eap(vit, random_pairs(vit, 2), method="random")
    return {
        "ablation='patch' needs a corrupt image at run time": lambda: compile_(vit, circuit, ablation="patch"),
        "ablation='mean' needs reference images": lambda: compile_(vit, circuit, ablation="mean"),
        "fresh, target_macs go with level='unit', not with 'edge'": lambda: compile_(vit, circuit, level="edge", fresh=True, target_macs=0.5),
        "level is 'head'": lambda: compile_(vit, circuit, level="head"),
        "this circuit belongs to another model": lambda: compile_(vit, other),
        "expected a circuitvit.Circuit, got EdgeScores": lambda: compile_(vit, scores),
        "reference is a list": lambda: compile_(vit, circuit, ablation="mean", reference=[1]),
        "reference images have shape": lambda: compile_(vit, circuit, reference=torch.zeros(2, 3, 4, 4).double()),
        "reference images hold NaN": lambda: compile_(vit, circuit, ablation="mean", reference=images / 0),
        "the weights hold NaN": lambda: compile_(nan, circuit),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_a_circuit_found_under_mean_is_compiled_under_mean_unless_asked_otherwise():
    vit = random_vit(shape())
    pairs, reference = random_pairs(vit, 3), random_images(vit, 5, seed=9)
    found = {
        ablation: cv.eap(vit, pairs, ablation=ablation, reference=reference).greedy(20)
        for ablation in ("patch", "zero", "mean")
    }
    for level in ("unit", "edge"):
        for ablation, circuit in found.items():
            under = "mean" if ablation == "mean" else "zero"
            default = cv.compile(vit, circuit, level=level, reference=reference)
            asked = cv.compile(vit, circuit, level=level, ablation=under, reference=reference)
            assert torch.equal(default(pairs.clean), asked(pairs.clean))
        with pytest.raises(cv.CircuitError, match="'mean' needs reference images, give reference="):
            cv.compile(vit, found["mean"], level=level)
        with pytest.warns(UserWarning, match="found under 'mean' and is compiled under 'zero'"):
            zero = cv.compile(vit, found["mean"], level=level, ablation="zero")
        assert not torch.allclose(
            zero(pairs.clean),
            cv.compile(vit, found["mean"], level=level, reference=reference)(pairs.clean),
        )
    fresh = cv.compile(vit, found["mean"], fresh=True)
    assert fresh.config == cv.compile(vit, found["mean"], ablation="zero", fresh=True).config


def test_every_reason_is_named_at_once(as_users_call):
    vit = random_vit(shape())
    with pytest.raises(cv.CircuitError) as refusal:
        cv.compile(vit, cv.Circuit(shape(heads=(2, 1)), []), level="head", ablation="patch")
    for reason in ("level is 'head'", "corrupt image at run time", "another model"):
        assert reason in str(refusal.value)


def test_a_circuit_without_a_path_warns_and_gives_a_model_without_units():
    """The unit circuit has every edge among the kept units, `embed` and `logits`: here one."""
    vit = random_vit(shape(pooling="mean"))
    images = random_images(vit, 3)
    with pytest.warns(UserWarning, match="no kept path from embed to logits"):
        small = cv.compile(vit, cv.Circuit(vit.config, ["embed->m0"]))
    assert units_of(small.config) == ()
    expected = cv.run_circuit(vit, ["embed->logits"], images, ablation="zero")
    assert torch.allclose(small(images), expected, atol=1e-12)


def test_a_circuit_of_other_weights_warns_here_too():
    vit, other = random_vit(shape()), random_vit(shape(), seed=7)
    circuit = cv.eap(vit, random_pairs(vit, 2), method="random").greedy(30)
    for use in (cv.compile, cv.retain_circuit):
        use(vit, circuit)
        with pytest.warns(UserWarning, match="other weights of the same shape"):
            use(other, circuit)


def test_the_same_weights_in_double_precision_are_no_other_weights():
    vit = random_vit(shape(), dtype=torch.float32)
    circuit = cv.eap(vit, random_pairs(vit, 2), method="random").greedy(30)
    cv.compile(copy.deepcopy(vit).double(), circuit)
