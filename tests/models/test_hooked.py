import pytest
import torch
from random_models import SHAPES, agree, random_images, random_vit, shape
from transformer_lens import ActivationCache

import circuitvit as cv
from circuitvit.models.hooked import numbers_kept

SPLIT_BLOCK = [
    "hook_resid_pre",
    "hook_q_input",
    "hook_k_input",
    "hook_v_input",
    "ln1_q.hook_scale",
    "ln1_q.hook_normalized",
    "ln1_k.hook_scale",
    "ln1_k.hook_normalized",
    "ln1_v.hook_scale",
    "ln1_v.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]


@pytest.mark.parametrize("split_qkv", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_a_hooked_vit_computes_the_same_logits(name, split_qkv):
    vit = random_vit(shape(name), seed=2)
    images = random_images(vit, 5)
    hooked = cv.HookedViT(vit, split_qkv=split_qkv)
    assert torch.allclose(hooked(images), vit(images), rtol=0, atol=1e-12)
    vit, images = vit.float(), images.float()
    assert (cv.HookedViT(vit)(images) - vit(images)).abs().max() < 1e-5


def test_the_comparison_fails_when_one_bias_is_changed():
    vit = random_vit(shape())
    images = random_images(vit, 5)
    expected = vit(images)
    hooked = cv.HookedViT(vit)
    with torch.no_grad():
        vit.blocks[0].output_bias[0] += 0.01
    assert (hooked(images) - expected).abs().max() > 1e-6  # the weights are shared


def test_the_hooks_have_transformer_lenss_names():
    vit = random_vit(shape())
    blocks = [f"blocks.{block}.{name}" for block in range(2) for name in SPLIT_BLOCK]
    ends = ["hook_embed", "ln_final.hook_scale", "ln_final.hook_normalized"]
    assert set(cv.HookedViT(vit).hook_dict) == {*blocks, *ends}
    joint = set(cv.HookedViT(vit, split_qkv=False).hook_dict)
    assert {
        "blocks.0.hook_attn_in",
        "blocks.0.ln1.hook_scale",
        "blocks.0.ln1.hook_normalized",
    } <= joint
    assert not any("_input" in name or "ln1_" in name for name in joint)


@pytest.mark.parametrize("split_qkv", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_writing_at_any_hook_moves_the_logits(name, split_qkv):
    vit = random_vit(shape(name), seed=2)
    hooked = cv.HookedViT(vit, split_qkv=split_qkv)
    images = random_images(vit, 3)
    expected = hooked(images)
    generator = torch.Generator().manual_seed(0)

    def shake(tensor, hook):
        return tensor + 0.5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    for hook in hooked.hook_dict:
        moved = (hooked.run_with_hooks(images, fwd_hooks=[(hook, shake)]) - expected).abs().max()
        assert moved > 1e-4, hook
    assert agree(hooked(images), expected)  # no hook stays behind


def test_a_head_reads_its_own_copy():
    """Writing one head's query input leaves its keys and the other heads alone."""
    vit = random_vit(shape())
    hooked = cv.HookedViT(vit)
    images = random_images(vit, 2)
    _, before = hooked.run_with_cache(images)
    after = {}

    def clear(tensor, hook):
        tensor = tensor.clone()
        tensor[:, :, 1] = 0
        return tensor

    def keep(tensor, hook):
        after[hook.name] = tensor

    names = [f"blocks.0.attn.hook_{x}" for x in ("q", "k", "v", "z")]
    hooked.run_with_hooks(
        images, fwd_hooks=[("blocks.0.hook_q_input", clear), *((name, keep) for name in names)]
    )
    for name in names:
        assert agree(after[name][:, :, 0], before[name][:, :, 0])
    assert not torch.allclose(after[names[0]][:, :, 1], before[names[0]][:, :, 1])
    assert agree(after[names[1]], before[names[1]])


def test_run_with_cache_gives_an_activation_cache_that_transformer_lens_understands():
    vit = random_vit(shape())
    hooked = cv.HookedViT(vit)
    images = random_images(vit, 3)
    logits, cache = hooked.run_with_cache(images)
    assert isinstance(cache, ActivationCache)
    assert agree(logits, hooked(images))
    tokens, heads = vit.config.tokens, 2
    assert cache["blocks.1.attn.hook_result"].shape == (3, tokens, heads, 8)
    assert cache["blocks.1.hook_q_input"].shape == (3, tokens, heads, 8)
    assert cache["blocks.1.attn.hook_pattern"].shape == (3, heads, tokens, tokens)
    assert torch.allclose(cache["blocks.0.attn.hook_pattern"].sum(-1), torch.ones(()).double())
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    assert torch.allclose(parts.sum(0), cache["blocks.1.hook_resid_post"])
    _, some = hooked.run_with_cache(images, names_filter="blocks.0.hook_mlp_out")
    assert list(some.keys()) == ["blocks.0.hook_mlp_out"]
    _, some = hooked.run_with_cache(images, names_filter=lambda name: name.endswith("hook_z"))
    assert len(some) == 2


def test_writes_and_constants_add_up_to_the_stream():
    vit = random_vit(shape("constants, quick"))
    _, cache = cv.HookedViT(vit).run_with_cache(random_images(vit, 2))
    block = vit.blocks[0]
    total = cache["hook_embed"] + cache["blocks.0.attn.hook_result"].sum(2)
    total = total + block.attention_constant + block.mlp_constant
    assert torch.allclose(total, cache["blocks.0.hook_resid_post"])


def test_unknown_hook_names_are_refused():
    hooked = cv.HookedViT(random_vit(shape()))
    images = random_images(hooked.vit, 2)
    with pytest.raises(cv.CircuitError, match=r"no hooks named \['blocks.9.hook_z'\]"):
        hooked.run_with_cache(images, names_filter="blocks.9.hook_z")
    with pytest.raises(cv.CircuitError, match="takes none"):
        hooked.run_with_cache(images, names_filter=lambda name: False)
    with pytest.raises(cv.CircuitError, match="no hooks named"):
        hooked.run_with_hooks(images, fwd_hooks=[("hook_nothing", lambda t, hook: t)])
    with pytest.raises(cv.CircuitError, match="no hooks named"):
        hooked.add_hook("hook_nothing", lambda t, hook: t)


def test_readers_and_writers_know_their_hooks():
    hooked = cv.HookedViT(random_vit(shape()))
    assert hooked.write_hook("a1.h0") == ("blocks.1.attn.hook_result", 0)
    assert hooked.write_hook("m1") == ("blocks.1.hook_mlp_out", None)
    assert hooked.read_hook("a1.h1.k") == ("blocks.1.hook_k_input", 1)
    assert hooked.read_hook("m0") == ("blocks.0.hook_mlp_in", None)
    assert hooked.read_hook("logits") == ("blocks.1.hook_resid_post", None)


# Case 17 of the field's reports: gradients in the cache


@pytest.mark.parametrize("split_qkv", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_the_size_of_a_cache_is_known_before_it_is_filled(name, split_qkv):
    vit = random_vit(shape(name))
    hooked = cv.HookedViT(vit, split_qkv=split_qkv)
    _, cache = hooked.run_with_cache(random_images(vit, 3))
    for hook, kept in cache.items():
        assert 3 * numbers_kept(vit.config, [hook]) == kept.numel(), hook
    assert 3 * numbers_kept(vit.config, cache) == sum(kept.numel() for kept in cache.values())


def test_a_cache_of_more_than_a_gibibyte_is_warned_of_before_it_is_made(monkeypatch, as_users_call):
    from circuitvit.models import hooked as module

    vit = random_vit(shape(), dtype=torch.float32)
    hooked, images = cv.HookedViT(vit), random_images(vit, 3)
    assert module.MUCH == 2**30
    size = 4 * 3 * numbers_kept(vit.config, hooked.hook_dict)
    monkeypatch.setattr(module, "MUCH", size)
    hooked.run_with_cache(images)  # exactly so much is not more
    monkeypatch.setattr(module, "MUCH", size - 1)
    told = rf"will keep 0.0 GiB: {len(hooked.hook_dict)} hooks of 3 images. Give names_filter, such"
    with pytest.warns(UserWarning, match=told):
        hooked.run_with_cache(images)
    hooked.run_with_cache(images, names_filter=lambda name: name.endswith("hook_pattern"))


def test_run_with_cache_and_incl_bwd_says_what_to_do_and_the_advice_works():
    vit = random_vit(shape())
    hooked, images = cv.HookedViT(vit), random_images(vit, 3)
    with pytest.raises(
        cv.CircuitError, match=r"one number with a gradient, got logits \[3, 4\]. Take .* your own"
    ):
        hooked.run_with_cache(images, incl_bwd=True)
    cache, forward, backward = hooked.get_caching_hooks(incl_bwd=True)
    with hooked.hooks(forward, backward):
        hooked(images)[:, 0].sum().backward()
    zs = {}
    with hooked.hooks([("blocks.1.attn.hook_z", lambda z, hook: zs.setdefault("z", z))]):
        [expected] = torch.autograd.grad(hooked(images)[:, 0].sum(), [zs["z"]])
    torch.testing.assert_close(cache["blocks.1.attn.hook_z_grad"], expected)
    assert {f"{name}_grad" for name in hooked.hook_dict} <= set(cache)


def test_incl_bwd_is_transformer_lenss_own_where_the_output_is_one_number():
    vit = random_vit(shape())
    single = cv.with_new_head(vit, 1)
    hooked = cv.HookedViT(single)
    logits, cache = hooked.run_with_cache(random_images(vit, 1), incl_bwd=True)
    assert logits.shape == (1, 1)
    assert cache["hook_embed_grad"].any()
    with torch.no_grad(), pytest.raises(cv.CircuitError, match="without gradients"):
        hooked.run_with_cache(random_images(vit, 1), incl_bwd=True)
