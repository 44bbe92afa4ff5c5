"""Keep these heads and neurons: the one operation that makes a ViT physically smaller.

What is cut writes nothing any more (zero ablation). The result is an ordinary `ViT` with a ragged
config; the caller's model stays as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Circuit
from circuitvit.graph.edge_graph import node_named
from circuitvit.intervene.input_checks import check_circuit, check_vit
from circuitvit.models.history import after
from circuitvit.models.vit import PARTS, ViT
from circuitvit.torch_modes import without_gradients


@without_gradients
def prune_heads(vit: ViT, heads: Mapping[int, Iterable[Any]]) -> ViT:
    """Cut heads out of a model, as `{block: heads to remove}`: numbers, or a mask.

    An attention that loses all its heads goes with its LayerNorm but keeps its output bias b_O.

    Raises:
        CircuitError: a block or head does not exist.
    """
    check_vit(vit)
    kept = _rest(vit, heads, vit.config.heads, "head")
    return _with_step(keep(vit, heads=kept), "heads pruned", vit)


@without_gradients
def prune_mlp(vit: ViT, neurons: Mapping[int, Iterable[Any]]) -> ViT:
    """Cut neurons out of a model, as `{block: neurons to remove}`: numbers, or a mask.

    The MLP's output bias stays. Where every neuron goes, the MLP goes, and its output bias joins
    the attention's b_O of the same block.

    Raises:
        CircuitError: a block or neuron does not exist.
    """
    check_vit(vit)
    kept = _rest(vit, neurons, vit.config.mlp_width, "neuron")
    emptied = [block for block, rest in kept.items() if not rest and vit.config.mlp_width[block]]
    weights, config = vit.state_dict(), vit.config
    for block in emptied:
        bias, name = weights[f"blocks.{block}.mlp.fc2.bias"], f"blocks.{block}.output_bias"
        weights[name] = weights[name] + bias if name in weights else bias
    config = replace(
        config, output_bias=tuple(b or i in emptied for i, b in enumerate(config.output_bias))
    )
    return _with_step(keep(rebuilt(vit, config, weights), neurons=kept), "neurons pruned", vit)


@without_gradients
def retain_circuit(vit: ViT, circuit: Circuit) -> ViT:
    """Keep only a circuit's units: the heads and MLPs on a kept path from `embed` to `logits`.

    All edges among them are dense again. An MLP that goes takes its output bias along; an attention
    that goes leaves its b_O. `circuitvit.compile` does the same with a check, and under `mean` too.

    Raises:
        CircuitError: the circuit belongs to a model with other edges.
    """
    check_vit(vit)
    check_circuit(vit, circuit)
    return _with_step(keep_units(vit, circuit.units()), "cut to a circuit's units", vit)


def _with_step(smaller: ViT, act: str, vit: ViT) -> ViT:
    """The smaller model, with the step added to its history."""
    (heads, neurons), config = smaller.units_kept(), vit.config
    details = {
        "heads_kept": f"{sum(heads):,} of {sum(config.heads):,}",
        "neurons_kept": f"{sum(neurons):,} of {sum(config.mlp_width):,}",
    }
    smaller.history = after(vit.history, act, details, None)
    return smaller


def keep_units(vit: ViT, units: Iterable[str]) -> ViT:
    """Keep the named heads and MLPs, such as `a0.h1` and `m3`, and cut all others."""
    nodes = [node_named(name) for name in units]
    heads: dict[int, list[int]] = {block: [] for block in range(vit.config.depth)}
    thinks = set()
    for node in nodes:
        assert node.block is not None
        if node.head is None:
            thinks.add(node.block)
        else:
            heads[node.block].append(node.head)
    neurons = {b: [] for b in range(vit.config.depth) if b not in thinks}
    return keep(vit, heads={b: sorted(h) for b, h in heads.items()}, neurons=neurons)


def keep(
    vit: ViT,
    *,
    heads: Mapping[int, Sequence[int]] | None = None,
    neurons: Mapping[int, Sequence[int]] | None = None,
) -> ViT:
    """The model with only these heads and neurons, by block; blocks not named keep theirs."""
    heads, neurons = dict(heads or {}), dict(neurons or {})
    config, weights = vit.config, vit.state_dict()
    for block, kept in heads.items():
        _keep_heads(weights, config, block, torch.tensor(kept, dtype=torch.long))
    for block, kept in neurons.items():
        _keep_neurons(weights, block, torch.tensor(kept, dtype=torch.long))
    smaller = replace(
        config,
        heads=tuple(len(heads.get(b, range(n))) for b, n in enumerate(config.heads)),
        mlp_width=tuple(len(neurons.get(b, range(n))) for b, n in enumerate(config.mlp_width)),
    )
    return rebuilt(vit, smaller, weights)


def rebuilt(vit: ViT, config: ViTConfig, weights: Mapping[str, Tensor]) -> ViT:
    """A new ViT of another shape with copies of these weights, in the mode of the old one."""
    copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
    new = ViT.from_weights(config, copies, source="surgery").train(vit.training)
    new.preprocessing, new.history = vit.preprocessing, vit.history
    return new


def _keep_heads(weights: dict[str, Tensor], config: ViTConfig, block: int, kept: Tensor) -> None:
    prefix, shape = f"blocks.{block}.attention.", (config.heads[block], config.head_width[block])
    if not len(kept):
        _drop(weights, prefix, f"blocks.{block}.ln1.")
        return
    kept = kept.to(weights["positions"].device)
    for name in ("qkv.weight", "qkv.bias"):
        if prefix + name in weights:
            rows = weights[prefix + name]
            by_head = rows.unflatten(0, (len(PARTS), *shape)).index_select(1, kept)
            weights[prefix + name] = by_head.flatten(0, 2)
    columns = weights[prefix + "out.weight"].unflatten(1, shape).index_select(1, kept)
    weights[prefix + "out.weight"] = columns.flatten(1, 2)


def _keep_neurons(weights: dict[str, Tensor], block: int, kept: Tensor) -> None:
    prefix = f"blocks.{block}.mlp."
    if not len(kept):
        _drop(weights, prefix, f"blocks.{block}.ln2.")
        return
    kept = kept.to(weights["positions"].device)
    for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
        weights[prefix + name] = weights[prefix + name].index_select(axis, kept)


def _drop(weights: dict[str, Tensor], *prefixes: str) -> None:
    for name in [name for name in weights if name.startswith(prefixes)]:
        del weights[name]


def _rest(
    vit: ViT, removed: Mapping[int, Iterable[Any]], counts: Sequence[int], what: str
) -> dict[int, list[int]]:
    """The kept heads or neurons of each named block, with every index checked."""
    rest: dict[int, list[int]] = {}
    problems = []
    for block, indices in removed.items():
        if block not in range(vit.config.depth):
            problems.append(f"block {block} does not exist, there are {vit.config.depth}")
            continue
        gone = _indices(indices, counts[block])
        if gone is None:
            problems.append(
                f"block {block} has {counts[block]} {what}s, so not {what} {_shown(indices)}; give "
                "whole numbers from 0, or a mask with one truth value each"
            )
            continue
        rest[int(block)] = [index for index in range(counts[block]) if index not in gone]
    if problems:
        raise CircuitError(f"cannot remove these {what}s: " + "; ".join(problems) + ".")
    return rest


def _indices(given: Any, count: int) -> set[int] | None:
    """Whole numbers below `count`, from a sequence, tensor or mask; None if it is none of these."""
    try:
        values = torch.as_tensor(given if isinstance(given, Tensor) else list(given)).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    if values.numel() == 0:
        return set()
    if values.dtype == torch.bool:
        return set(values.nonzero()[:, 0].tolist()) if values.shape == (count,) else None
    whole = values.ndim == 1 and not (values.is_floating_point() or values.is_complex())
    chosen = set(values.tolist()) if whole else {-1}
    return chosen if chosen <= set(range(count)) else None


def _shown(given: object) -> object:
    return given.tolist() if isinstance(given, Tensor) else given
