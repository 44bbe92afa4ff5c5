"""Slow and independent truths: whole hooked forward passes, autograd and finite differences.

Nothing here uses `circuitvit.intervene.ablated_run` or `circuitvit.discover`; runs go through `HookedViT`, whose
equality with `ViT` is tested on its own.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

import circuitvit as cv
from circuitvit.models.hooked import HookedViT

Values = dict[str, Tensor]


def writers(config: cv.ViTConfig) -> list[str]:
    names = ["embed"]
    for block in range(config.depth):
        names += [f"a{block}.h{head}" for head in range(config.heads[block])]
        names += [f"m{block}"] * (config.mlp_width[block] > 0)
    return names


def writers_before(config: cv.ViTConfig, reader: str) -> list[str]:
    """Writers earlier than a reader; the heads of its own block only for an MLP."""
    if reader == "logits":
        return writers(config)
    block = int(reader.lstrip("am").split(".")[0])
    before = [
        w for w in writers(config) if w == "embed" or int(w.lstrip("am").split(".")[0]) < block
    ]
    if reader.startswith("m"):
        before += [f"a{block}.h{head}" for head in range(config.heads[block])]
    return before


def readers(config: cv.ViTConfig, qkv: str) -> list[str]:
    names = ["logits"]
    for block in reversed(range(config.depth)):
        names += [f"m{block}"] * (config.mlp_width[block] > 0)
        for head in reversed(range(config.heads[block])):
            name = f"a{block}.h{head}"
            names += [name] if qkv == "joint" else [f"{name}.{part}" for part in "vkq"]
    return names


def edges(config: cv.ViTConfig, qkv: str) -> list[str]:
    return [
        f"{writer}->{reader}"
        for reader in readers(config, qkv)
        for writer in reversed(writers_before(config, reader))
    ]


def write_values(hooked: HookedViT, images: Tensor) -> Values:
    """What every writer writes in the untouched model."""
    _, cache = hooked.run_with_cache(images)
    values = {}
    for writer in writers(hooked.vit.config):
        name, head = hooked.write_hook(writer)
        values[writer] = cache[name] if head is None else cache[name][:, :, head]
    return values


def ablated_values(
    vit: cv.ViT, pairs: cv.Pairs, ablation: str, reference: Tensor | None = None
) -> Values:
    hooked = cv.HookedViT(vit)
    if ablation == "patch":
        return write_values(hooked, pairs.corrupt)
    if ablation == "zero":
        return {name: torch.zeros_like(v) for name, v in write_values(hooked, pairs.clean).items()}
    means = write_values(hooked, reference)
    return {name: value.mean(dim=0, keepdim=True) for name, value in means.items()}


def constants_before(vit: cv.ViT, reader: str) -> Tensor:
    """Output biases and constants that a reader reads, [token width]."""
    total = torch.zeros_like(vit.positions)
    block = vit.config.depth if reader == "logits" else int(reader.lstrip("am").split(".")[0])
    for index in range(block):
        for name in ("output_bias", "attention_constant", "mlp_constant"):
            constant = getattr(vit.blocks[index], name)
            total = total + (0 if constant is None else constant)
    if reader.startswith("m"):
        for name in ("output_bias", "attention_constant"):
            constant = getattr(vit.blocks[block], name)
            total = total + (0 if constant is None else constant)
    return total


def circuit_logits(
    vit: cv.ViT, kept: Iterable[str], images: Tensor, ablated: Values, qkv: str = "split"
) -> Tensor:
    """One whole hooked forward pass in which every reader's input is written anew."""
    kept, hooked = set(kept), cv.HookedViT(vit, split_qkv=qkv == "split")
    values: Values = {}
    hooks = []

    def keep_value(tensor, hook):
        for writer in writers(vit.config):
            name, head = hooked.write_hook(writer)
            if name == hook.name:
                values[writer] = tensor if head is None else tensor[:, :, head]

    def replace_read(tensor, hook):
        tensor = tensor.clone()
        for reader in readers(vit.config, qkv):
            name, head = hooked.read_hook(reader)
            if name != hook.name:
                continue
            total = constants_before(vit, reader)
            for writer in writers_before(vit.config, reader):
                live = f"{writer}->{reader}" in kept
                total = total + (values[writer] if live else ablated[writer])
            if head is None:
                tensor = total.expand_as(tensor)
            else:
                tensor[:, :, head] = total
        return tensor

    names = {hooked.write_hook(writer)[0] for writer in writers(vit.config)}
    hooks += [(name, keep_value) for name in sorted(names)]
    names = {hooked.read_hook(reader)[0] for reader in readers(vit.config, qkv)}
    hooks += [(name, replace_read) for name in sorted(names)]
    with torch.no_grad():
        return hooked.run_with_hooks(images, fwd_hooks=hooks)


def loss(metric: str, logits: Tensor, pairs: cv.Pairs, full: Tensor) -> Tensor:
    rows = torch.arange(len(logits))
    if metric == "kl":
        return F.kl_div(logits.log_softmax(-1), full.softmax(-1), reduction="none").sum(-1)
    if metric == "cross_entropy":
        return F.cross_entropy(logits, pairs.labels, reduction="none")
    if metric == "probability":
        return -logits.softmax(-1)[rows, pairs.labels]
    return -(logits[rows, pairs.labels] - logits[rows, pairs.corrupt_labels])


def acdc(
    vit: cv.ViT, pairs: cv.Pairs, tau: float, ablation: str, *, qkv: str = "split", **options
) -> tuple[str, ...]:
    """ACDC by one whole hooked forward pass an edge; the options are those of `acdc_rises`."""
    kept, _ = acdc_rises(vit, pairs, tau, ablation, qkv=qkv, **options)
    return tuple(edge for edge in edges(vit.config, qkv) if edge in kept)


def acdc_rises(
    vit: cv.ViT,
    pairs: cv.Pairs,
    tau: float,
    ablation: str,
    *,
    qkv: str = "split",
    reference: Tensor | None = None,
    metric: str = "kl",
    within: Iterable[str] | None = None,
    order: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], float]:
    """What each kept edge would have cost when it was tried, and D of the circuit.

    `within` are the edges to start from; by `order` each reader's writers go weakest first.
    """
    ablated = ablated_values(vit, pairs, ablation, reference)
    with torch.no_grad():
        full = vit(pairs.clean)
    start = float(loss(metric, full, pairs, full).mean())
    kept, rises = set(edges(vit.config, qkv) if within is None else within), {}

    def rise_of(some: set[str]) -> float:
        logits = circuit_logits(vit, some, pairs.clean, ablated, qkv)
        return float(loss(metric, logits, pairs, full).mean()) - start

    current = 0.0 if within is None else rise_of(kept)
    for reader in readers(vit.config, qkv):
        tried = [e for e in edges(vit.config, qkv) if e.endswith(f"->{reader}") and e in kept]
        if order is not None:
            tried.sort(key=lambda edge: abs(order[edge]))
        unit = reader[:-2] if reader[-2:] in (".q", ".k", ".v") else reader
        for edge in tried:
            if unit != "logits" and not any(e.startswith(f"{unit}->") for e in kept):
                kept.discard(edge)
                continue
            new = rise_of(kept - {edge})
            if new - current < tau:
                kept.discard(edge)
                current = new
            else:
                rises[edge] = new - current
    return rises, current


def exact_scores(
    vit: cv.ViT, pairs: cv.Pairs, ablation: str, metric: str, reference: Tensor | None = None
) -> Values:
    ablated = ablated_values(vit, pairs, ablation, reference)
    everything = edges(vit.config, "split")
    with torch.no_grad():
        full = vit(pairs.clean)
    base = loss(metric, full, pairs, full).mean()
    scores = {}
    for edge in everything:
        logits = circuit_logits(vit, set(everything) - {edge}, pairs.clean, ablated)
        scores[edge] = loss(metric, logits, pairs, full).mean() - base
    return scores


def read_gradients(
    vit: cv.ViT, images: Tensor, full: Tensor, pairs: cv.Pairs, metric: str, embed=None
):
    """∂(sum of losses)/∂x_r by autograd at the hook points; `embed` replaces what embed writes."""
    hooked, captured = cv.HookedViT(vit), {}

    def capture(tensor, hook):
        captured[hook.name] = tensor = tensor.clone().requires_grad_(True)
        return tensor

    names = {hooked.read_hook(reader)[0] for reader in readers(vit.config, "split")}
    hooks = [(name, capture) for name in sorted(names)]
    if embed is not None:
        hooks.append(("hook_embed", lambda tensor, hook: embed))
    logits = hooked.run_with_hooks(images, fwd_hooks=hooks)
    total = loss(metric, logits, pairs, full).sum()
    gradients = dict(
        zip(captured, torch.autograd.grad(total, list(captured.values())), strict=True)
    )
    by_reader = {}
    for reader in readers(vit.config, "split"):
        name, head = hooked.read_hook(reader)
        by_reader[reader] = gradients[name] if head is None else gradients[name][:, :, head]
    return by_reader


def eap(
    vit: cv.ViT,
    pairs: cv.Pairs,
    ablation: str,
    metric: str,
    reference: Tensor | None = None,
    shares: tuple[float, ...] | None = None,
) -> Values:
    """Scores edge by edge; `shares` are the points between corrupt (0) and clean (1) embeddings."""
    hooked = cv.HookedViT(vit)
    clean, ablated = (
        write_values(hooked, pairs.clean),
        ablated_values(vit, pairs, ablation, reference),
    )
    with torch.no_grad():
        full = vit(pairs.clean)
    points = [None]
    if shares is not None:
        corrupt = write_values(hooked, pairs.corrupt)["embed"]
        points = [(corrupt + s * (clean["embed"] - corrupt)).detach() for s in shares]
    scores: Values = {}
    for point in points:
        gradients = read_gradients(vit, pairs.clean, full, pairs, metric, point)
        for edge in edges(vit.config, "split"):
            writer, reader = edge.split("->")
            product = ((ablated[writer] - clean[writer]) * gradients[reader]).sum()
            scores[edge] = scores.get(edge, 0) + product / len(pairs) / len(points)
    return scores
