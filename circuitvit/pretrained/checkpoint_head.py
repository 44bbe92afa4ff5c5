"""The classifier among the tensors of a file, wherever a script has put its one linear layer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.plain_weights import few

_HEADS = {
    "head": "head", "head_dist": "head_dist", "heads": "heads.head", "classifier": "classifier",
    "cls_classifier": "cls_classifier", "distillation_classifier": "distillation_classifier",
}  # fmt: skip
"""Where each library keeps a classifier, and what its one layer is called."""
_BACKBONES = {
    "patch_embed.proj.weight": "head",
    "conv_proj.weight": "heads.head",
    "patch.weight": "head",
}
"""The embedding of patches in each layout, and what its classifier is called there."""
_INSIDE = re.compile(
    r"^(patch_embed|conv_proj|patch|pos_embed|positions|cls_token|dist_token|reg_token|blocks|"
    r"encoder|norm|norm_pre|fc_norm|final_norm|embed_norm|embeddings|layers?|attn_pool|pre_logits)"
    r"(\.|$)"
)
"""Tensors of a backbone, among which there is no classifier."""


class OuterHead(NamedTuple):
    """A classifier that was found outside of the backbone.

    Attributes:
        taken: its keys.
        notes: what was taken.
        guessed: the same as a sentence, where something beside it was left out.
    """

    taken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def straight_heads(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name, with a classifier that is the only layer of a Sequential under its plain name."""
    names = {name: name for name in tensors}
    for root, plain in _HEADS.items():
        inside = {n: t for n, t in tensors.items() if n.startswith(f"{root}.")}
        layers = {name.rpartition(".")[0] for name in inside}
        if len(layers) != 1 or layers <= {root, plain}:
            continue
        kinds = {name.rpartition(".")[2]: t.ndim for name, t in inside.items()}
        if kinds.get("weight") == 2 and set(kinds) <= {"weight", "bias"}:
            names |= {name: f"{plain}.{name.rpartition('.')[2]}" for name in inside}
    return names


def with_outer_head(
    path: Path, tensors: dict[str, Tensor], beside: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], OuterHead]:
    """A backbone's tensors with the one linear layer beside it, of its width, as its head.

    Raises:
        CircuitError: several layers can be the head.
    """
    patches = next((name for name in _BACKBONES if name in tensors), None)
    if patches is None or any(name.partition(".")[0] in _HEADS for name in tensors):
        return tensors, OuterHead()
    head, width = _BACKBONES[patches], len(tensors[patches])
    outside = {n: t for n, t in tensors.items() if not _INSIDE.match(n)} | dict(beside)
    layers = [
        name.removesuffix("weight")
        for name, tensor in outside.items()
        if re.search(r"(^|\.)weight$", name) and tensor.ndim == 2 and tensor.shape[1] == width
    ]
    if len(layers) > 1:
        raise CircuitError(
            f"{path} has several layers that can be the head: "
            f"{few([f'{layer}weight' for layer in layers])}. Rename the one that is meant before "
            f"saving: state[{f'{head}.weight'!r}] = state.pop({f'{layers[0]}weight'!r}), and its "
            "bias likewise, with the backbone's keys without their prefix."
        )
    if not layers or _has_more(layers[0], outside):
        return tensors, OuterHead()
    taken = {n for kind in ("weight", "bias") if (n := f"{layers[0]}{kind}") in outside}
    left = [
        name
        for name, tensor in outside.items()
        if name not in taken and tensor.ndim and tensor.shape[-1] == width  # as a norm between
    ]
    found = {n: t for n, t in tensors.items() if n not in taken}
    found |= {f"{head}.{n.removeprefix(layers[0])}": outside[n] for n in taken}
    note = f"{', '.join(sorted(taken))} beside the backbone taken as its head"
    guess = f"of {path}, {note}, while {few(left)} is left out. Give the whole model if that acts."
    return found, OuterHead(tuple(sorted(taken)), (note,), (guess,) if left else ())


def _has_more(layer: str, outside: Mapping[str, Tensor]) -> bool:
    """Whether a layer is one of several of a head, or has more than a weight and a bias."""
    root = layer.partition(".")[0]
    plain = {f"{layer}weight", f"{layer}bias"}
    return any(n.partition(".")[0] == root and n not in plain for n in outside)
