import pytest
import torch
from random_models import SHAPES, random_images, random_pairs, random_vit, shape
from small_circuits import circuit_of_units

import circuitvit as cv
from circuitvit.compiler import compiling
from circuitvit.compiler.passes.neurons import fold_neurons, kept_neurons
from circuitvit.discover import EdgeScores
from circuitvit.graph.edge_graph import units_of


def scored(vit, seed=0):
    return cv.eap(vit, random_pairs(vit, 2), method="random", level="neuron", seed=seed)


def hooked_run(vit, images, reference, ablation, units, kept):
    """A hooked run in which removed units, and removed neurons of the others, are replaced."""
    hooked = cv.HookedViT(vit)
    _, cache = hooked.run_with_cache(reference)
    mean = ablation == "mean"

    def instead(hook):
        value = cache[hook.name].mean(dim=0, keepdim=True)
        return value if mean else torch.zeros_like(value)

    def heads(gone):
        def replace(tensor, hook):
            tensor = tensor.clone()
            tensor[:, :, gone] = instead(hook)[:, :, gone]
            return tensor

        return replace

    def neurons(stay):
        def replace(tensor, hook):
            changed = instead(hook).expand_as(tensor).clone()
            changed[..., stay] = tensor[..., stay]
            return changed

        return replace

    hooks = []
    for block, count in enumerate(vit.config.heads):
        gone = [head for head in range(count) if f"a{block}.h{head}" not in units]
        if gone:
            hooks.append((f"blocks.{block}.attn.hook_result", heads(gone)))
        if vit.config.mlp_width[block] and f"m{block}" not in units:
            hooks.append(
                (f"blocks.{block}.hook_mlp_out", lambda t, hook: instead(hook).expand_as(t))
            )
        elif block in kept:
            hooks.append((f"blocks.{block}.mlp.hook_post", neurons(kept[block])))
    with torch.no_grad():
        return hooked.run_with_hooks(images, fwd_hooks=hooks)


def best(scores, block, count):
    """The neurons of a block that score most by size."""
    own = [name for name in scores if name.startswith(f"m{block}.")]
    own = sorted(own, key=lambda name: -abs(scores[name]))[:count]
    return sorted(int(name.split(".n")[1]) for name in own)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_compiled_model_equals_a_hooked_run_with_removed_neurons_replaced(name, ablation):
    vit = random_vit(shape(name), seed=2)
    images, reference = random_images(vit, 4), random_images(vit, 9, seed=3)
    before = vit.fingerprint()
    narrowed = 0
    for seed, (share, ratio, multiple) in enumerate(
        (
            (1.0, 0.5, 1),
            (0.7, 0.3, 2),
            (0.7, 0.2, 1),
            (
                0.5,
                {b: 0.4 for b in range(3) if vit.config.depth > b and vit.config.mlp_width[b]},
                1,
            ),
        )
    ):
        circuit, units = circuit_of_units(vit, seed, share)
        scores = scored(vit, seed)
        small = cv.compile(
            vit, circuit, ablation=ablation, reference=reference,
            neurons=scores, keep_ratio=ratio, multiple=multiple,
        )  # fmt: skip
        stay = {
            int(unit[1:]): best(scores, int(unit[1:]), small.config.mlp_width[int(unit[1:])])
            for unit in units if unit.startswith("m")
        }  # fmt: skip
        expected = hooked_run(vit, images, reference, ablation, units, stay)
        assert torch.allclose(small(images), expected, rtol=0, atol=1e-10)
        assert len(units_of(small.config)) == len(units)
        narrowed += sum(len(some) < vit.config.mlp_width[block] for block, some in stay.items())
    assert narrowed >= 2
    assert vit.fingerprint() == before


def test_one_ratio_ranks_the_neurons_of_all_kept_mlps_together():
    config = shape(depth=3, mlp_width=(6, 6, 4))
    values = {f"m0.n{k}": 10.0 - k for k in range(6)}
    values |= {f"m1.n{k}": -(1.0 + k) for k in range(6)} | {f"m2.n{k}": 100.0 for k in range(4)}
    scores = EdgeScores(config, values, qkv="split", provenance=cv.Provenance(level="neuron"))

    def kept(ratio, multiple, units=("a0.h0", "m0", "m1")):
        return kept_neurons(scores, units, ratio, multiple)

    assert kept(0.5, 1) == {0: [0, 1, 2, 3, 4], 1: [5]}
    assert kept(0.5, 2) == {1: [4, 5]}
    assert kept(0.5, 4) == {1: [2, 3, 4, 5]}
    assert kept(0.5, 5) == {0: [0, 1, 2, 3, 4], 1: [1, 2, 3, 4, 5]}
    assert kept(0.5, 16) == {}
    assert kept(0.01, 1) == {0: [0], 1: [5]}
    assert kept(1.0, 1) == {}
    assert kept({0: 0.5, 1: 0.2}, 1) == {0: [0, 1, 2], 1: [5]}
    assert kept({0: 0.5, 2: 0.5}, 2) == {0: [0, 1, 2, 3]}
    assert kept(0.5, 1, units=("m2",)) == {2: [0, 1]}
    assert kept(0.5, 1, units=()) == {}


@pytest.mark.parametrize("multiple", [1, 2, 4, 5, 64])
def test_widths_are_snapped_up_but_never_above_what_they_were(multiple):
    vit = random_vit(shape("ragged"), seed=2)
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    small = cv.compile(vit, circuit, neurons=scored(vit), keep_ratio=0.3, multiple=multiple)
    exact = cv.compile(vit, circuit, neurons=scored(vit), keep_ratio=0.3, multiple=1)
    for had, has, least in zip(
        vit.config.mlp_width, small.config.mlp_width, exact.config.mlp_width, strict=True
    ):
        assert has == min(had, -(-least // multiple) * multiple)


def test_under_mean_removed_neurons_go_into_the_mlps_constant():
    vit = random_vit(shape(), seed=2)
    reference = random_images(vit, 9)
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    scores = scored(vit)
    small = cv.compile(
        vit, circuit, ablation="mean", reference=reference,
        neurons=scores, keep_ratio={1: 0.5}, multiple=1,
    )  # fmt: skip
    assert small.config.mlp_width == (6, 3)
    assert small.config.mlp_constant == (False, True)
    _, cache = cv.HookedViT(vit).run_with_cache(reference)
    gone = [k for k in range(6) if k not in best(scores, 1, 3)]
    means = cache["blocks.1.mlp.hook_post"].mean(0)[:, gone]
    expected = means @ vit.blocks[1].mlp.fc2.weight[:, gone].T
    assert torch.allclose(small.blocks[1].mlp_constant, expected, atol=1e-12)
    bare = cv.compile(vit, circuit, neurons=scores, keep_ratio={1: 0.5}, multiple=1)
    assert bare.config.mlp_constant == (False, False)


def test_a_wrong_neuron_is_not_returned(monkeypatch):
    def off_by_one(compiled, kept, removed):
        kept = {block: [(n + 1) % 6 for n in some] for block, some in kept.items()}
        return fold_neurons(compiled, kept, removed)

    monkeypatch.setattr(compiling, "fold_neurons", off_by_one)
    vit = random_vit(shape(), seed=2)
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    for ablation in ("zero", "mean"):
        with pytest.raises(cv.CircuitError, match="differs from the masked run"):
            cv.compile(
                vit, circuit, ablation=ablation, reference=random_images(vit, 5),
                neurons=scored(vit), keep_ratio=0.5, multiple=1,
            )  # fmt: skip


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_fresh_model_has_the_same_shape_without_constants_and_new_weights(ablation):
    vit = random_vit(shape("constants, quick"), seed=2, dtype=torch.float32)
    options = dict(ablation=ablation, reference=random_images(vit, 5), neurons=scored(vit))
    options |= dict(keep_ratio=0.5, multiple=1)
    circuit = cv.Circuit(vit.config, ["embed->a0.h1.v", "a0.h1->m1", "m1->logits"])
    state = torch.get_rng_state()
    trained = cv.compile(vit, circuit, **options)
    fresh = cv.compile(vit, circuit, fresh=True, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("heads", "head_width", "mlp_width", "width"):
        assert getattr(fresh.config, name) == getattr(trained.config, name)
    assert not any(fresh.config.attention_constant + fresh.config.mlp_constant)
    assert any(trained.config.attention_constant + trained.config.mlp_constant)
    assert fresh.fingerprint() == cv.ViT(fresh.config, seed=3).fingerprint()
    assert (
        fresh.fingerprint() != cv.compile(vit, circuit, fresh=True, seed=4, **options).fingerprint()
    )
    assert fresh.positions.dtype == torch.float32
    assert not fresh.training
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def bad_calls():
    vit = random_vit(shape())
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    scores, edges = scored(vit), cv.eap(vit, random_pairs(vit, 2), method="random")

    def call(**options):
        return lambda: cv.compile(vit, circuit, **options)

    return {
        "neurons need keep_ratio": call(neurons=scores),
        "keep_ratio needs neurons=scores": call(keep_ratio=0.5),
        "keep_ratio is 0, expected a share above 0": call(neurons=scores, keep_ratio=0),
        "keep_ratio is 1.5, expected a share above 0": call(neurons=scores, keep_ratio=1.5),
        "keep_ratio is nan, expected a share above 0": call(neurons=scores, keep_ratio=float("nan")),
        "keep_ratio is 'half', expected a number": call(neurons=scores, keep_ratio="half"),
        "keep_ratio of block 1 is -1, expected": call(neurons=scores, keep_ratio={1: -1}),
        "keep_ratio names block 2, which has no MLP": call(neurons=scores, keep_ratio={2: 0.5}),
        "multiple is 0, expected ≥ 1": call(neurons=scores, keep_ratio=0.5, multiple=0),
        "multiple is 1.5, expected a whole number": call(neurons=scores, keep_ratio=0.5, multiple=1.5),
        "neurons are scores of edges": call(neurons=edges, keep_ratio=0.5),
        "neurons are a dict": call(neurons={"m0.n0": 1.0}, keep_ratio=0.5),
        "belong to another model, with heads": call(neurons=scored(random_vit(shape(mlp_width=7))), keep_ratio=0.5),
        "MLPs .*; score the neurons of this one": call(neurons=scored(random_vit(shape(heads=(2, 1)))), keep_ratio=0.5),
        "seed is 'x', expected a whole number": call(fresh=True, seed="x"),
        "neurons, keep_ratio, fresh go with level='unit'": call(level="edge", neurons=scores, keep_ratio=0.5, fresh=True),
    }  # fmt: skip


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_refused_with_the_remedy(message, as_users_call):
    with pytest.raises(cv.CircuitError, match=message):
        bad_calls()[message]()


def test_every_reason_is_named_at_once(as_users_call):
    vit = random_vit(shape())
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    with pytest.raises(cv.CircuitError) as refusal:
        cv.compile(
            vit, circuit, level="edge", ablation="patch", neurons=[1], keep_ratio=2, multiple=0,
            target_macs=3, target_latency=0.5,
        )  # fmt: skip
    for reason in (
        "corrupt image", "neurons are a list", "keep_ratio is 2", "multiple is 0", "one budget",
        "target_macs is 3",
        "neurons, keep_ratio, multiple, target_latency, target_macs go with level='unit'",
    ):  # fmt: skip
        assert reason in str(refusal.value)


def test_scores_of_other_weights_warn():
    vit, other = random_vit(shape()), random_vit(shape(), seed=7)
    circuit, _ = circuit_of_units(vit, 0, 1.0)
    cv.compile(vit, circuit, neurons=scored(vit), keep_ratio=0.5, multiple=1)
    with pytest.warns(UserWarning, match="scored on other weights"):
        cv.compile(vit, circuit, neurons=scored(other), keep_ratio=0.5, multiple=1)
