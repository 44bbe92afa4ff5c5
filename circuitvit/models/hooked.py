"""The same ViT under TransformerLens hooks: every residual read and write has a name.

`HookedViT` shares its parameters with the `ViT` it wraps and computes the same logits, step by step
and head by head, so it is slower; use it to look and to intervene. Names and shapes are
TransformerLens's own.
"""

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint, LensHandle

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, warn
from circuitvit.models.vit import PARTS, Attention, Block, ViT, activate, pooled
from circuitvit.torch_modes import in_single, ordinary

MUCH = 2**30
"""Bytes; before a cache takes more, a warning says so."""
_READ_BY_HEAD = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in")


class OwnHookPoint(HookPoint):
    """A HookPoint that passes each function a copy of the tensor.

    What passes through a hook point shares memory with other reads (the copies of the stream that
    heads read are one expanded tensor) and with the cache. Functions may write in place, as
    TransformerLens's own setters do, and change no more than by returning a new tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The tensor; a copy where functions see it, or where it is kept."""
        return x.clone() if self._forward_hooks else x

    def add_hook(self, hook: Any, *more: Any, **options: Any) -> LensHandle:  # pyright: ignore[reportIncompatibleMethodOverride]
        """TransformerLens's `add_hook`."""
        handle = super().add_hook(hook if _only_reads(hook) else _OnACopy(hook), *more, **options)
        handle.user_hook = hook
        return handle


class _OnACopy:
    """Call a hook's function on a copy, which is passed on unless the function returns a value."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, tensor: Tensor, *, hook: Any) -> Any:
        own = tensor.clone()
        result = self.function(own, hook=hook)
        return own if result is None else result

    def __repr__(self) -> str:
        return repr(self.function)


def _only_reads(hook: Any) -> bool:
    """Whether it is the function by which TransformerLens fills its cache: that needs no copy."""
    function = getattr(hook, "func", hook)
    home = getattr(function, "__module__", "") or ""
    return home.startswith("transformer_lens.") and function.__name__ == "save_hook"


class HookedLayerNorm(nn.Module):
    """A LayerNorm with `hook_scale` [… 1] and `hook_normalized` [… width], affine part included."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_scale = OwnHookPoint()
        self.hook_normalized = OwnHookPoint()

    def forward(self, norm: nn.LayerNorm, x: Float[Tensor, "*any width"]) -> Tensor:
        """The LayerNorm of x; of x in half precision computed in single, as torch's is."""
        own = in_single(x)
        centred = own - own.mean(dim=-1, keepdim=True)
        scale = self.hook_scale((centred.pow(2).mean(dim=-1, keepdim=True) + norm.eps).sqrt())
        return self.hook_normalized((centred / scale * norm.weight + norm.bias).to(x.dtype))


class HookedAttention(nn.Module):
    """The heads of a block; q, k, v, z are [image token head head_width]."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_q = OwnHookPoint()
        self.hook_k = OwnHookPoint()
        self.hook_v = OwnHookPoint()
        self.hook_attn_scores = OwnHookPoint()  # [image head query key]
        self.hook_pattern = OwnHookPoint()  # [image head query key]
        self.hook_z = OwnHookPoint()
        self.hook_result = OwnHookPoint()  # [image token head width]

    def forward(
        self, attention: Attention, normalized: dict[str, Float[Tensor, "image token head width"]]
    ) -> Float[Tensor, "image token head width"]:
        """What each head writes, given what its q, k and v read (normalised)."""
        q, k, v = (self._project(attention, part, normalized[part]) for part in PARTS)
        scores = torch.einsum("iqhd,ikhd->ihqk", q, k) / attention.head_width**0.5
        pattern = self.hook_pattern(self.hook_attn_scores(scores).softmax(dim=-1))
        z = self.hook_z(torch.einsum("ihqk,ikhd->iqhd", pattern, v))
        return self.hook_result(torch.einsum("ithd,hdw->ithw", z, attention.output_weight()))

    def _project(self, attention: Attention, part: str, x: Tensor) -> Tensor:
        weight, bias = attention.projection(part)
        projected = torch.einsum("ithw,hdw->ithd", x, weight)
        projected = projected if bias is None else projected + bias
        hook = cast(HookPoint, getattr(self, f"hook_{part}"))
        return hook(attention.normalize(part, projected))


class HookedMLP(nn.Module):
    """The neurons of a block before and after the activation, [image token neuron]."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_pre = OwnHookPoint()
        self.hook_post = OwnHookPoint()


class HookedBlock(nn.Module):
    """One block. Sub-layers that are absent have no hooks, except what they still add."""

    def __init__(self, config: ViTConfig, block: int, *, split_qkv: bool) -> None:
        super().__init__()
        self.heads = config.heads[block]
        self.split_qkv = split_qkv
        self.hook_resid_pre = OwnHookPoint()
        if self.heads and split_qkv:
            for part in PARTS:
                self.add_module(f"hook_{part}_input", OwnHookPoint())
                self.add_module(f"ln1_{part}", HookedLayerNorm())
        elif self.heads:
            self.hook_attn_in = OwnHookPoint()
            self.ln1 = HookedLayerNorm()
        if self.heads:
            self.attn = HookedAttention()
        self.hook_attn_out = OwnHookPoint()
        self.hook_resid_mid = OwnHookPoint()
        if config.mlp_width[block]:
            self.hook_mlp_in = OwnHookPoint()
            self.ln2 = HookedLayerNorm()
            self.mlp = HookedMLP()
        self.hook_mlp_out = OwnHookPoint()
        self.hook_resid_post = OwnHookPoint()

    def forward(self, block: Block, stream: Float[Tensor, "image token width"]) -> Tensor:
        """The stream after this block."""
        stream = self.hook_resid_pre(stream)
        written = torch.zeros_like(stream)
        if block.attention is not None:
            normalized = self._normalized(cast(nn.LayerNorm, block.ln1), stream)
            written = self.attn(block.attention, normalized).sum(dim=2)
        stream = stream + self.hook_attn_out(_plus(written, block.output_bias))
        stream = self.hook_resid_mid(_plus(stream, block.attention_constant))
        written = torch.zeros_like(stream)
        if block.mlp is not None:
            x = self.ln2(cast(nn.LayerNorm, block.ln2), self.hook_mlp_in(stream))
            pre = self.mlp.hook_pre(block.mlp.fc1(x))
            written = block.mlp.fc2(self.mlp.hook_post(activate(block.mlp.activation, pre)))
        stream = stream + self.hook_mlp_out(written)
        return self.hook_resid_post(_plus(stream, block.mlp_constant))

    def _normalized(self, norm: nn.LayerNorm, stream: Tensor) -> dict[str, Tensor]:
        copies = stream[:, :, None].expand(-1, -1, self.heads, -1)
        if not self.split_qkv:
            normalized = self.ln1(norm, self.hook_attn_in(copies))
            return dict.fromkeys(PARTS, normalized)
        parts = {}
        for part in PARTS:
            hook = cast(HookPoint, getattr(self, f"hook_{part}_input"))
            parts[part] = cast(HookedLayerNorm, getattr(self, f"ln1_{part}"))(norm, hook(copies))
        return parts


class HookedViT(HookedRootModule):
    """A ViT whose residual reads and writes are TransformerLens hook points.

    Args:
        vit: the model; its parameters are shared. They are copied only if they were made inside
            `torch.inference_mode`, where no gradient can pass.
        split_qkv: give each head's query, key and value its own copy of the stream
            (`hook_q_input`, … and `ln1_q`, …); else a head has one (`hook_attn_in`, `ln1`).
    """

    def __init__(self, vit: ViT, *, split_qkv: bool = True) -> None:
        super().__init__()
        if not isinstance(vit, ViT):
            raise CircuitError(
                f"expected a circuitvit.ViT, got {type(vit).__name__}; load_vit(model) makes one."
            )
        vit.check_parts()
        self.vit = ordinary(vit)
        self.split_qkv = split_qkv
        self.cfg = _lens_config(vit.config)
        self.hook_embed = OwnHookPoint()
        self.blocks = nn.ModuleList(
            HookedBlock(vit.config, block, split_qkv=split_qkv) for block in range(vit.config.depth)
        )
        self.ln_final = HookedLayerNorm()
        self.setup()

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """The logits of the wrapped ViT for images [image channel height width]."""
        config, norm, head = self.vit.config, self.vit.final_norm, self.vit.head
        stream = self.hook_embed(self.vit.embed(images))
        for hooked, block in zip(self.blocks, self.vit.blocks, strict=True):
            stream = hooked(block, stream)
        if config.fc_norm:
            return head(self.ln_final(norm, pooled(config, stream)))
        return head(pooled(config, self.ln_final(norm, stream)))

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Tensor,
        *,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        **lens: Any,
    ) -> tuple[Float[Tensor, "image class"], ActivationCache]:
        """The logits and the activations at the hooks, by name.

        Args:
            images: the batch.
            names_filter: which hooks to keep: a name, names, or a function of the name. By default
                it is all of them, and a warning comes before more than 1 GiB is kept.
            **lens: further arguments of TransformerLens's `run_with_cache`. Its `incl_bwd` calls
                `backward` on the output, so it goes with a model of one logit and one image only.

        Raises:
            CircuitError: a name is not that of a hook, the function takes none, or `incl_bwd` is
                asked for several logits.
        """
        if lens.get("incl_bwd"):
            self._check_backward(images)
        names = [names_filter] if isinstance(names_filter, str) else names_filter
        if callable(names):
            kept = [name for name in self.hook_dict if names(name)]
            if not kept:
                raise CircuitError("names_filter takes none of the model's hooks; see hook_dict.")
        else:
            kept = list(self.hook_dict) if names is None else list(names)
        self._check_names(kept)
        self._warn_of_size(images, kept)
        lens.pop("return_cache_object", None)
        logits, cache = super().run_with_cache(
            images, names_filter=lambda name: name in set(kept), **lens
        )
        has_batch = not lens.get("remove_batch_dim", False)
        return logits, ActivationCache(cache, self, has_batch_dim=has_batch)

    def _warn_of_size(self, images: Tensor, names: Iterable[str]) -> None:
        kept = list(names)
        bytes_each = next(self.vit.parameters()).element_size()
        size = len(images) * bytes_each * numbers_kept(self.vit.config, kept)
        if size > MUCH:
            warn(
                f"run_with_cache will keep {size / 2**30:z.1f} GiB: {len(kept)} hooks of "
                f"{len(images)} images. Give names_filter, such as names_filter=lambda name: "
                "name.endswith('hook_pattern'), or fewer images."
            )

    def _check_backward(self, images: Tensor) -> None:
        logits = len(images), self.vit.config.classes
        if logits != (1, 1) or not torch.is_grad_enabled():
            raise CircuitError(
                "run_with_cache(incl_bwd=True) calls backward on the model's output, which has to "
                f"be one number with a gradient, got logits {list(logits)}"
                f"{'' if torch.is_grad_enabled() else ' without gradients'}. Take the gradient of "
                "a loss of your own: cache, forward, backward = hooked.get_caching_hooks("
                "incl_bwd=True); with hooked.hooks(forward, backward): "
                "loss(hooked(images)).backward(). Gradients are in cache['….hook_z_grad']."
            )

    def setup(self) -> None:
        """Name the hook points as TransformerLens does, leaving the wrapped ViT's modules alone."""
        modules = [(n, m) for n, m in self.named_modules() if n and n.split(".")[0] != "vit"]
        self.mod_dict = dict(modules)
        self.hook_dict = {n: m for n, m in modules if isinstance(m, HookPoint)}
        for name, hook_point in self.hook_dict.items():
            hook_point.name = name

    def add_hook(self, name: Any, *hook: Any, **lens: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """TransformerLens's `add_hook`; an unknown name raises a CircuitError."""
        self._check_names([name] if isinstance(name, str) else [])
        super().add_hook(name, *hook, **lens)

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *switches: bool, **more: bool):  # pyright: ignore[reportIncompatibleMethodOverride]
        """TransformerLens's context manager; unknown names raise a CircuitError at once."""
        self._check_names(name for name, _ in [*fwd_hooks, *bwd_hooks] if isinstance(name, str))
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *switches, **more)

    def write_hook(self, writer: str) -> tuple[str, int | None]:
        """The hook where a writer writes and, for a head, its index along the head axis."""
        return self._hook(writer, "hook_mlp_out", "attn.hook_result", ending="")

    def read_hook(self, reader: str) -> tuple[str, int | None]:
        """The hook where a reader reads its copy of the stream and, for a head, its index."""
        part = reader.rpartition(".")[2]
        hook = f"hook_{part}_input" if self.split_qkv else "hook_attn_in"
        return self._hook(reader, "hook_mlp_in", hook, ending=f".{part}" if self.split_qkv else "")

    def _hook(self, name: str, mlp: str, head: str, *, ending: str) -> tuple[str, int | None]:
        if name == "embed":
            return "hook_embed", None
        if name == "logits":
            last = len(self.blocks) - 1
            return (f"blocks.{last}.hook_resid_post" if last >= 0 else "hook_embed"), None
        if name.startswith("m"):
            return f"blocks.{name[1:]}.{mlp}", None
        block, _, index = name.removesuffix(ending)[1:].partition(".h")
        return f"blocks.{block}.{head}", int(index)

    def _check_names(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.hook_dict))
        if unknown:
            raise CircuitError(
                f"no hooks named {unknown}. Names are such as 'blocks.0.attn.hook_z'; "
                "HookedViT.hook_dict lists all."
            )


def numbers_kept(config: ViTConfig, names: Iterable[str]) -> int:
    """The numbers that hooks of these names keep for one image, without running anything."""
    return sum(_numbers_at(config, name) for name in names)


def _numbers_at(config: ViTConfig, name: str) -> int:
    part, _, hook = name.rpartition(".")
    one = hook == "hook_scale"
    if part == "ln_final":
        rows = config.pooled if config.fc_norm else config.tokens
        return rows * (1 if one else config.width)
    if not part:  # hook_embed
        return config.tokens * config.width
    _, block, *inner = part.split(".")
    heads, mlp_width = config.heads[int(block)], config.mlp_width[int(block)]
    layer = inner[0] if inner else ""
    if layer == "mlp":
        return config.tokens * mlp_width
    by_head = layer == "attn" or layer.startswith("ln1") or hook in _READ_BY_HEAD
    if hook in ("hook_attn_scores", "hook_pattern"):
        each = config.tokens
    elif hook in ("hook_q", "hook_k", "hook_v", "hook_z"):
        each = config.head_width[int(block)]
    else:
        each = 1 if one else config.width
    return config.tokens * (heads if by_head else 1) * each


def _plus(stream: Tensor, constant: Tensor | None) -> Tensor:
    return stream if constant is None else stream + constant


def _lens_config(config: ViTConfig) -> SimpleNamespace:
    """The config fields of ActivationCache; per-block numbers are those of the largest block."""
    return SimpleNamespace(
        n_layers=config.depth,
        d_model=config.width,
        n_heads=max(config.heads, default=0),
        d_head=max(config.head_width, default=0),
        d_mlp=max(config.mlp_width, default=0),
        n_ctx=config.tokens,
        attn_only=not any(config.mlp_width),
        normalization_type="LN",
        positional_embedding_type="standard",
        model_name="circuitvit",
    )
