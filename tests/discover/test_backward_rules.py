"""GIM and RelP against hooks on the hooked model, which know nothing of the fused passes."""

from functools import partial

import oracles
import pytest
import torch
from random_models import SHAPES, linear_vit, random_images, random_pairs, random_vit, shape

import circuitvit as cv

ABLATIONS = ("patch", "zero", "mean")
BY_GRADIENT = {"eap", "gim", "relp"}


def freeze(tensor, hook):
    return tensor.detach()


def scaled(share, tensor, hook):
    return share * tensor + (1 - share) * tensor.detach()


def gim_hooks(hooked):
    """Frozen σ, shared products, and softmax at temperature 2 without the factor ½."""
    names, hooks, seen = list(hooked.hook_dict), [], {}

    def keep(tensor, hook):
        seen[hook.name] = tensor

    def tempered(tensor, hook):
        softer = 2 * (seen[hook.name.replace("hook_pattern", "hook_attn_scores")] / 2).softmax(-1)
        return tensor.detach() + softer - softer.detach()

    for ending, share in (("attn.hook_q", 0.25), ("attn.hook_k", 0.25), ("attn.hook_v", 0.5)):
        hooks += [(name, partial(scaled, share)) for name in names if name.endswith(ending)]
    for ending, change in (
        ("hook_scale", freeze),
        ("hook_attn_scores", keep),
        ("hook_pattern", tempered),
    ):
        hooks += [(name, change) for name in names if name.endswith(ending)]
    return hooks


def relp_hooks(hooked):
    """Frozen σ and patterns, and activations that are gates."""
    names, hooks, seen = list(hooked.hook_dict), [], {}

    def keep(tensor, hook):
        seen[hook.name] = tensor

    def gate(tensor, hook):
        pre = seen[hook.name.replace("hook_post", "hook_pre")]
        return pre * (tensor / pre).detach()

    for ending, change in (
        ("hook_scale", freeze),
        ("hook_pattern", freeze),
        ("mlp.hook_pre", keep),
        ("mlp.hook_post", gate),
    ):
        hooks += [(name, change) for name in names if name.endswith(ending)]
    return hooks


def hooked_scores(vit, pairs, ablation, reference, hooks_of):
    """Edge scores with the gradients that come back through changed hooks."""
    hooked, captured = cv.HookedViT(vit), {}
    clean = oracles.write_values(hooked, pairs.clean)
    ablated = oracles.ablated_values(vit, pairs, ablation, reference)

    def capture(tensor, hook):
        captured[hook.name] = tensor = tensor.clone().requires_grad_(True)
        return tensor

    reads = {hooked.read_hook(reader)[0] for reader in oracles.readers(vit.config, "split")}
    hooks = [*hooks_of(hooked), *((name, capture) for name in sorted(reads))]
    logits = hooked.run_with_hooks(pairs.clean, fwd_hooks=hooks)
    assert torch.allclose(logits, vit(pairs.clean))  # forward values are the model's own
    total = oracles.loss("logit_difference", logits, pairs, None).sum()
    values = torch.autograd.grad(total, list(captured.values()), allow_unused=True)
    gradients = dict(zip(captured, values, strict=True))
    scores = {}
    for edge in oracles.edges(vit.config, "split"):
        writer, reader = edge.split("->")
        name, head = hooked.read_hook(reader)
        slope = gradients[name]
        if slope is None:
            scores[edge] = 0.0
            continue
        slope = slope if head is None else slope[:, :, head]
        scores[edge] = float(((ablated[writer] - clean[writer]) * slope).sum()) / len(pairs)
    return scores


def largest_error(got, expected):
    assert list(got) == list(expected)
    worst = max(abs(got[name] - expected[name]) for name in got)
    return worst / max(abs(score) for score in expected.values())


def freeze_query_norms(vit):
    """Freeze σ of the LayerNorms of queries and keys, which have no hooks of their own."""

    def frozen(norm, inputs, output):
        (x,) = inputs
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().detach()
        return centred / scale * norm.weight + norm.bias

    norms = [
        norm for b in vit.blocks if b.attention for norm in (b.attention.q_norm, b.attention.k_norm)
    ]
    return [norm.register_forward_hook(frozen) for norm in norms if norm is not None]


@pytest.mark.filterwarnings("ignore:this ViT has forward hooks on .*_norm")  # as is meant here
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("method", "hooks"), [("gim", gim_hooks), ("relp", relp_hooks)])
def test_modified_gradients_equal_hooks_that_modify_them(method, hooks, name, ablation):
    vit = random_vit(shape(name), seed=3)
    pairs, reference = random_pairs(vit, 3), random_images(vit, 5, seed=9)
    got = cv.eap(vit, pairs, method=method, ablation=ablation, reference=reference)
    handles = freeze_query_norms(vit)
    expected = hooked_scores(vit, pairs, ablation, reference, hooks)
    for handle in handles:
        handle.remove()
    assert largest_error(got, expected) < 1e-9
    plain = cv.eap(vit, pairs, ablation=ablation, reference=reference)
    assert largest_error(got, plain) > 1e-3


def without_biases():
    vit = random_vit(shape(qkv_bias=False, output_bias=False), seed=5)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith("bias") and "patch" not in name:
                parameter.zero_()
    return vit


def test_relp_conserves_relevance_where_there_are_no_biases():
    """What comes into a unit goes out of it, and all that comes into the logits is the metric."""
    vit = without_biases()
    pairs = random_pairs(vit, 3)
    scores = cv.eap(vit, pairs, method="relp", ablation="zero")
    for unit in ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"):
        into = sum(s for e, s in scores.items() if e.split("->")[1].startswith(unit))
        out = sum(s for e, s in scores.items() if e.split("->")[0] == unit)
        assert abs(out) > 1e-3
        assert into == pytest.approx(out, abs=1e-10)
    loss = oracles.loss("logit_difference", vit(pairs.clean), pairs, None).mean()
    total = sum(score for edge, score in scores.items() if edge.endswith("->logits"))
    assert total == pytest.approx(-float(loss.detach()), abs=1e-10)
    plain = cv.eap(vit, pairs, ablation="zero")
    into = sum(s for e, s in plain.items() if e.split("->")[1] == "m0")
    assert into != pytest.approx(sum(s for e, s in plain.items() if e.startswith("m0->")), abs=1e-3)


def test_relp_gives_queries_and_keys_no_relevance():
    vit = random_vit(shape(), seed=3)
    scores = cv.eap(vit, random_pairs(vit, 3), method="relp", ablation="zero")
    for edge, score in scores.items():
        assert (score == 0.0) == (edge[-2:] in (".q", ".k"))


def test_on_a_linear_model_relp_is_eap_and_gim_halves_what_passes_values():
    vit = linear_vit()
    pairs = random_pairs(vit, 3)
    eap, gim, relp = (cv.eap(vit, pairs, method=method) for method in ("eap", "gim", "relp"))
    assert largest_error(relp, eap) < 1e-8
    last = [edge for edge in eap if edge.split("->")[1] in ("a1.h0.v", "a1.h1.v")]
    assert len(last) == 8
    for edge in last:
        assert gim[edge] == pytest.approx(eap[edge] / 2, rel=1e-8)
        assert abs(eap[edge]) > 0.1


def test_a_gate_at_zero_is_one_half():
    from circuitvit.discover.eap.backward_rules import RELP
    from circuitvit.models.vit import activate

    for name in ("gelu", "gelu_tanh", "quick_gelu"):
        x = torch.tensor([-2.0, 0.0, 1e-30, 3.0], dtype=torch.float64, requires_grad=True)
        value = RELP.activate(name, x)
        assert torch.allclose(value, activate(name, x))
        (slope,) = torch.autograd.grad(value.sum(), x)
        assert slope[1] == 0.5
        assert torch.allclose(slope[[0, 3]], (activate(name, x) / x)[[0, 3]])
