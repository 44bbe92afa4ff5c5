"""What stays of a ViT when heads and neurons go: masked runs, ACDC over parts, and the smaller model.

Not an experiment itself. A run without some parts starts at the first block that lost one, since
all before it is as in the whole model. Removed heads and neurons give their ablated values
everywhere, `zero` or `mean`, as circuitvit defines them; an MLP without any neuron writes the
ablated value of the whole MLP.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import circuitvit as cv
from circuitvit.graph.circuit import Provenance, edges_among
from circuitvit.intervene.writer_outputs import ablated_writes, neuron_means
from circuitvit.models.vit import activate
from circuitvit.progress import progress

Places = Mapping[int, Iterable[int]]


@dataclass(frozen=True)
class Kept:
    """The heads and neurons that stay, by block, ascending."""

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, config: cv.ViTConfig) -> "Kept":
        """Everything."""
        return cls(
            tuple(tuple(range(count)) for count in config.heads),
            tuple(tuple(range(count)) for count in config.mlp_width),
        )

    @classmethod
    def of_units(cls, config: cv.ViTConfig, units: Iterable[str]) -> "Kept":
        """These heads and MLPs, with all their neurons."""
        named, whole = set(units), cls.whole(config)
        return cls(
            tuple(
                tuple(head for head in some if f"a{block}.h{head}" in named)
                for block, some in enumerate(whole.heads)
            ),
            tuple(some if f"m{b}" in named else () for b, some in enumerate(whole.neurons)),
        )

    def without(self, *, heads: Places | None = None, neurons: Places | None = None) -> "Kept":
        """What stays when these go too, given as `{block: which}`."""
        return replace(
            self, heads=_less(self.heads, heads or {}), neurons=_less(self.neurons, neurons or {})
        )

    def units(self) -> tuple[str, ...]:
        """The heads, and the MLPs that have a neuron left."""
        heads = (f"a{block}.h{head}" for block, some in enumerate(self.heads) for head in some)
        return *heads, *(f"m{block}" for block, some in enumerate(self.neurons) if some)

    def counts(self) -> dict[str, Any]:
        """How many stay: blocks with anything left, heads, neurons; and the last two by block."""
        heads, neurons = ([len(some) for some in kept] for kept in (self.heads, self.neurons))
        blocks = sum(any(both) for both in zip(heads, neurons, strict=True))
        return {"blocks": blocks, "heads": sum(heads), "neurons": sum(neurons),
                "heads_by_block": heads, "neurons_by_block": neurons}  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"heads": list(map(list, self.heads)), "neurons": list(map(list, self.neurons))}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "Kept":
        """What `as_dict` gave."""
        return cls(*(tuple(map(tuple, body[name])) for name in ("heads", "neurons")))


@dataclass(frozen=True)
class Part:
    """What goes together in one trial."""

    name: str
    heads: Places
    neurons: Places


def _less(kept: Sequence[tuple[int, ...]], gone: Places) -> tuple[tuple[int, ...], ...]:
    lost = {block: set(some) for block, some in gone.items()}
    return tuple(
        tuple(one for one in some if one not in lost[block]) if block in lost else some
        for block, some in enumerate(kept)
    )


@dataclass(frozen=True)
class Ablated:
    """What removed parts give, by block; axes of size 1 are broadcast.

    Attributes:
        z: of each head, before W_O.
        mlp: of each whole MLP.
        post: of each neuron after the activation.
    """

    z: Sequence[Tensor | None]
    mlp: Sequence[Tensor | None]
    post: Sequence[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, vit: cv.ViT, ablation: str, reference: Tensor) -> "Ablated":
        """For `zero`, or for `mean` over the reference images."""
        found = ablated_writes(vit, ablation, reference=reference)
        if ablation == "mean":
            means = neuron_means(vit, reference)
            post = [means.get(block, vit.positions[:0]) for block in range(vit.config.depth)]
        else:
            post = [vit.positions.new_zeros(1, count) for count in vit.config.mlp_width]
        return cls(found.z, found.mlp, post)


class MaskedRuns:
    """The logits of some images without some parts."""

    @torch.no_grad()
    def __init__(self, vit: cv.ViT, images: Tensor, ablated: Ablated) -> None:
        self.vit, self.ablated = vit, ablated
        self.streams, stream = [], vit.embed(images)
        for block in vit.blocks:
            self.streams.append(stream)
            stream = block(stream)
        self.full = vit.read_out(stream)
        self._entry: tuple[int, Tensor, Tensor] | None = None
        self._weights: dict[int, tuple[tuple[int, ...], tuple[Tensor, ...]]] = {}

    @torch.no_grad()
    def logits(self, kept: Kept) -> Tensor:
        """Those of one run."""
        config = self.vit.config
        lost = [
            block
            for block in range(config.depth)
            if len(kept.heads[block]) < config.heads[block]
            or len(kept.neurons[block]) < config.mlp_width[block]
        ]
        if not lost:
            return self.full
        first = lost[0]
        stream, rest = self.streams[first], range(first, config.depth)
        if len(kept.heads[first]) == config.heads[first] and kept.neurons[first]:
            stream, rest = self._without_neurons(first, kept.neurons[first]), rest[1:]
        for index in rest:
            stream = self._attended(index, stream, kept.heads[index])
            stream = self._thought(index, stream, kept.neurons[index])
        return self.vit.read_out(stream)

    def _attended(self, index: int, stream: Tensor, heads: Sequence[int]) -> Tensor:
        block, ablated = self.vit.blocks[index], self.ablated.z[index]
        if block.attention is not None:
            z = block.attention.mix(block.ln1(stream))
            if gone := sorted(set(range(z.shape[1])) - set(heads)):
                z[:, gone] = ablated[:, gone].expand(len(z), -1, z.shape[2], -1)
            stream = stream + block.attention.write(z, block.output_bias)
        elif block.output_bias is not None:
            stream = stream + block.output_bias
        return stream if block.attention_constant is None else stream + block.attention_constant

    def _without_neurons(self, index: int, neurons: Sequence[int]) -> Tensor:
        """The stream after a block that lost neurons only: its heads and neurons run once."""
        block = self.vit.blocks[index]
        if self._entry is None or self._entry[0] != index:
            stream = self._attended(index, self.streams[index], range(self.vit.config.heads[index]))
            self._entry = index, stream, block.mlp.neurons(block.ln2(stream))
        _, stream, post = self._entry
        stays = torch.zeros(post.shape[-1], dtype=torch.bool, device=post.device)
        stays[list(neurons)] = True
        written = block.mlp.fc2(torch.where(stays, post, self.ablated.post[index]))
        return self._after(index, stream + written)

    def _thought(self, index: int, stream: Tensor, neurons: Sequence[int]) -> Tensor:
        block = self.vit.blocks[index]
        if block.mlp is None:
            return self._after(index, stream)
        if not neurons:
            return self._after(index, stream + self.ablated.mlp[index])
        first, bias, second, constant = self._smaller(index, tuple(neurons))
        post = activate(block.mlp.activation, F.linear(block.ln2(stream), first, bias))
        return self._after(index, stream + F.linear(post, second) + constant)

    def _smaller(self, index: int, neurons: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The weights of an MLP's neurons, and what the others and the bias add; kept for reuse."""
        known = self._weights.get(index)
        if known is None or known[0] != neurons:
            mlp, ablated = self.vit.blocks[index].mlp, self.ablated.post[index]
            gone = sorted(set(range(mlp.fc1.out_features)) - set(neurons))
            stay = list(neurons)
            constant = F.linear(ablated[:, gone], mlp.fc2.weight[:, gone], mlp.fc2.bias)
            weights = mlp.fc1.weight[stay], mlp.fc1.bias[stay], mlp.fc2.weight[:, stay], constant
            self._weights[index] = known = neurons, weights
        return known[1]

    def _after(self, index: int, stream: Tensor) -> Tensor:
        constant = self.vit.blocks[index].mlp_constant
        return stream if constant is None else stream + constant


@dataclass(frozen=True)
class Found:
    """What ACDC over parts leaves.

    Attributes:
        kept: what stays.
        divergence: the metric's rise of what stays over the whole model.
        trials: how many runs it took.
    """

    kept: Kept
    divergence: float
    trials: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kept": self.kept.as_dict(), "divergence": self.divergence, "trials": self.trials}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "Found":
        """What `as_dict` gave, beside other entries."""
        return cls(Kept.from_dict(body["kept"]), body["divergence"], body["trials"])


def acdc_over(
    config: cv.ViTConfig, parts: Sequence[Part], loss: Callable[[Kept], float], tau: float
) -> Found:
    """Remove part after part, in the order given, whose removal raises the loss by less than τ.

    As in Conmy et al. 2023 the rise is that over what is left by then, with its sign.
    """
    kept = Kept.whole(config)
    start = current = loss(kept)
    with progress(f"ACDC, τ={tau:zg}", len(parts)) as advance:
        for part in parts:
            candidate = kept.without(heads=part.heads, neurons=part.neurons)
            found = loss(candidate)
            if found - current < tau:
                kept, current = candidate, found
            advance(part.name)
    return Found(kept, current - start, len(parts))


def blocks_of(config: cv.ViTConfig) -> list[Part]:
    """Whole blocks, from the last."""
    return [
        Part(f"block{b}", {b: range(config.heads[b])}, {b: range(config.mlp_width[b])})
        for b in reversed(range(config.depth))
    ]


def heads_of(config: cv.ViTConfig) -> list[Part]:
    """Single heads, from the last block's last."""
    return [
        Part(f"a{block}.h{head}", {block: [head]}, {})
        for block in reversed(range(config.depth))
        for head in reversed(range(config.heads[block]))
    ]


def neuron_groups(config: cv.ViTConfig, scores: Mapping[str, float], group: int) -> list[Part]:
    """Neurons in groups of a size, the weakest |score| of a block first, from the last block.

    The strongest group of a block is left out, so that no MLP loses all its neurons.
    """
    parts = []
    for block in reversed(range(config.depth)):
        neurons = range(config.mlp_width[block])
        ranked = sorted(neurons, key=lambda neuron: abs(scores[f"m{block}.n{neuron}"]))
        groups = [ranked[start : start + group] for start in range(0, len(ranked), group)]
        parts += [
            Part(f"m{block}.g{place}", {}, {block: some}) for place, some in enumerate(groups[:-1])
        ]
    return parts


def random_prunings(
    config: cv.ViTConfig, level: str, count: int, many: int, seed: int
) -> list[Kept]:
    """Prunings that keep so many blocks, heads or neurons, drawn at random; no two alike.

    Args:
        config: of the whole model.
        level: blocks, heads or neurons; everything else stays.
        count: how many parts stay.
        many: how many prunings; where there are no more, it is all of them.
        seed: of the draws.
    """
    if level == "neurons":
        parts = [
            Part(f"m{block}.n{neuron}", {}, {block: [neuron]})
            for block, width in enumerate(config.mlp_width)
            for neuron in range(width)
        ]
    else:
        parts = blocks_of(config) if level == "blocks" else heads_of(config)
    going = len(parts) - count
    if math.comb(len(parts), going) <= many:
        return [_without(config, gone) for gone in combinations(parts, going)]
    draw, found = Random(f"{level} {count} {seed}"), dict[Kept, None]()
    while len(found) < many:
        found[_without(config, draw.sample(parts, going))] = None
    return list(found)


def _without(config: cv.ViTConfig, gone: Iterable[Part]) -> Kept:
    heads, neurons = dict[int, list[int]](), dict[int, list[int]]()
    for part in gone:
        for block, some in part.heads.items():
            heads.setdefault(block, []).extend(some)
        for block, some in part.neurons.items():
            neurons.setdefault(block, []).extend(some)
    return Kept.whole(config).without(heads=heads, neurons=neurons)


def compiled(vit: cv.ViT, kept: Kept, ablation: str, reference: Tensor) -> cv.ViT:
    """The smaller model of what stays; the compiler compares it with its own masked run."""
    config, model = vit.config, vit.fingerprint()
    edges = edges_among(config, kept.units(), "split")
    circuit = cv.Circuit(config, edges, provenance=Provenance(model=model))
    shares = {
        block: len(some) / config.mlp_width[block]
        for block, some in enumerate(kept.neurons)
        if 0 < len(some) < config.mlp_width[block]
    }
    if not shares:
        return cv.compile(vit, circuit, ablation=ablation, reference=reference)
    stays = {f"m{block}.n{n}" for block, some in enumerate(kept.neurons) for n in some}
    names = (f"m{b}.n{n}" for b, width in enumerate(config.mlp_width) for n in range(width))
    scores = cv.EdgeScores(
        config,
        {name: float(name in stays) for name in names},
        qkv="split",
        provenance=Provenance(level="neuron", model=model),
    )
    return cv.compile(
        vit, circuit, ablation=ablation, reference=reference,
        neurons=scores, keep_ratio=shares, multiple=1,
    )  # fmt: skip
