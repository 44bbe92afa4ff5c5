"""The one forward pass with edges replaced.

For a set C of kept edges every reader r reads

    x_r = constants + Σ_{(w→r)∈C} a_w + Σ_{(w→r)∉C} ã_w,

where a_w is what w writes in this same run and ã_w its ablated value. LayerNorm is recomputed on
the sum, and with all edges kept this is the model itself. `run_embedded` is the plain form, with a
copy of the sum for every reader; the compiler's check uses it. Discovery and measures use the quick
form, `circuitvit.intervene.circuit_runs`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.circuit import Ablation, Circuit
from circuitvit.graph.edge_graph import Node, Qkv, node_named, places_of, writers_before
from circuitvit.images import Pairs
from circuitvit.intervene.batching import images_in_chunk
from circuitvit.intervene.circuit_runs import Runs
from circuitvit.intervene.input_checks import (
    check_ablation,
    check_circuit,
    check_finite,
    check_vit,
)
from circuitvit.intervene.run_plan import RunPlan
from circuitvit.intervene.writer_outputs import (
    ablated_values,
    ablated_writes,
)
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, sublayers
from circuitvit.models.vit import PARTS, Attention, ViT
from circuitvit.torch_modes import default_modes, ordinary, without_gradients


@dataclass(frozen=True)
class EdgeMask:
    """The kept edges, as rows over the writers before each reader.

    Attributes:
        attention: for each block [part head writer]; no heads, no rows.
        mlp: for each block [writer]; empty where there is no MLP.
        logits: [writer].
    """

    attention: tuple[Bool[Tensor, "part _head _writer"], ...]
    mlp: tuple[Bool[Tensor, " _writer"], ...]
    logits: Bool[Tensor, " _writer"]

    @classmethod
    def of(cls, config: ViTConfig, edges: Iterable[str], qkv: Qkv = "split") -> "EdgeMask":
        """The mask that keeps exactly these edges."""
        before, places = writers_before(config), places_of(config)
        mask = cls.full(config, kept=False)
        for name in edges:
            writer, reader = name.split("->")
            node = node_named(reader)
            row = mask.row(node)
            row[..., places[writer]] = True
            assert places[writer] < before[node.unit]
        return mask

    @classmethod
    def full(cls, config: ViTConfig, *, kept: bool = True) -> "EdgeMask":
        """The mask that keeps every edge, or none."""
        before = writers_before(config)
        return cls(
            tuple(
                torch.full((3, heads, before.get(f"a{block}.h0", 0)), kept)
                for block, heads in enumerate(config.heads)
            ),
            tuple(torch.full((before.get(f"m{block}", 0),), kept) for block in range(config.depth)),
            torch.full((before["logits"],), kept),
        )

    def row(self, reader: Node) -> Bool[Tensor, "*part writer"]:
        """The row of a reader, as a view; all three rows of a head with joint q/k/v."""
        if reader.block is None:
            return self.logits
        if reader.head is None:
            return self.mlp[reader.block]
        rows = self.attention[reader.block][:, reader.head]
        return rows if reader.part is None else rows[PARTS.index(reader.part)]

    def to(self, device: torch.device) -> "EdgeMask":
        """The same mask on another device."""
        return EdgeMask(
            tuple(rows.to(device) for rows in self.attention),
            tuple(row.to(device) for row in self.mlp),
            self.logits.to(device),
        )


@dataclass(frozen=True)
class RemovedNeurons:
    """Neurons of an MLP that are replaced by their ablated post-activation.

    Attributes:
        gone: which they are.
        values: ã of every neuron, [token neuron] or the same for all tokens.
    """

    gone: Bool[Tensor, " neuron"]
    values: Float[Tensor, "#token neuron"]


@dataclass(frozen=True)
class AblatedRun:
    """The result of an ablated run.

    Attributes:
        logits: [image class].
        values: what each writer wrote in this run, [writer image token width].
    """

    logits: Float[Tensor, "image class"]
    values: Float[Tensor, "writer image token width"]


def run_embedded(
    vit: ViT,
    embedded: Float[Tensor, "image token width"],
    mask: EdgeMask,
    ablated: Float[Tensor, " writer #image #token #width"],
    *,
    on_read: Callable[[str, Tensor], None] | None = None,
    neurons: Mapping[int, RemovedNeurons] | None = None,
) -> AblatedRun:
    """The ablated run, from what `embed` wrote on.

    Args:
        vit: the model.
        embedded: the live value of `embed`.
        mask: the kept edges.
        ablated: ã of every writer; axes of size 1 are broadcast.
        on_read: called with (`a{l}`, [part head image token width]), (`m{l}`, [image token
            width]) and (`logits`, [image token width]): the copies that the readers read.
        neurons: those removed, by block.
    """
    removed = neurons or {}
    mask = mask.to(embedded.device)
    tell = on_read or (lambda _name, _read: None)
    live = [embedded]
    constants = embedded.new_zeros(())
    for layer in sublayers(vit):
        if isinstance(layer, AttentionLayer):
            reads = _read(mask.attention[layer.block], live, ablated) + constants
            tell(layer.name, reads)
            live.extend(head_values(layer, reads).unbind())
        elif isinstance(layer, MlpLayer):
            reads = _read(mask.mlp[layer.block], live, ablated) + constants
            tell(layer.name, reads)
            live.append(mlp_value(layer, reads, removed.get(layer.block)))
        constants = constants + layer.constants
    reads = _read(mask.logits, live, ablated) + constants
    tell("logits", reads)
    return AblatedRun(vit.read_out(reads), torch.stack(live))


def _read(
    rows: Bool[Tensor, "*reader writer"],
    live: list[Tensor],
    ablated: Float[Tensor, " all_writers #image #token #width"],
) -> Float[Tensor, "*reader image token width"]:
    kept = rows.to(live[0].dtype)
    values = torch.tensordot(kept, torch.stack(live), dims=1)
    if bool(rows.all()):
        return values
    return values + torch.tensordot(1 - kept, ablated[: len(live)], dims=1)


def head_values(
    layer: AttentionLayer, reads: Float[Tensor, "part head image token width"]
) -> Float[Tensor, "head image token width"]:
    """What each head writes, given what its q, k and v read (before the LayerNorm)."""
    q, k, v = (
        project(layer.attention, part, layer.norm(x)) for part, x in zip(PARTS, reads, strict=True)
    )
    return head_writes(layer.attention, q, k, v)


def project(
    attention: Attention,
    part: str,
    normalized: Float[Tensor, "_head image token width"],
    heads: slice = slice(None),
) -> Float[Tensor, "head image token head_width"]:
    """The queries, keys or values of some heads, each from its own copy of the stream."""
    weight, bias = attention.projection(part)
    projected = torch.einsum("hitw,hdw->hitd", normalized, weight[heads])
    if bias is not None:
        projected = projected + bias[heads, None, None]
    return attention.normalize(part, projected)


def head_writes(
    attention: Attention,
    q: Float[Tensor, "head image token head_width"],
    k: Float[Tensor, "head image token head_width"],
    v: Float[Tensor, "head image token head_width"],
    heads: slice = slice(None),
) -> Float[Tensor, "head image token width"]:
    """What some heads write, given their queries, keys and values."""
    z = F.scaled_dot_product_attention(q, k, v)
    return torch.einsum("hitd,hdw->hitw", z, attention.output_weight()[heads])


def mlp_value(
    layer: MlpLayer,
    reads: Float[Tensor, "image token width"],
    removed: RemovedNeurons | None = None,
) -> Float[Tensor, "image token width"]:
    """What the MLP writes, given what it reads (before the LayerNorm)."""
    post = layer.neurons(reads)
    if removed is not None:
        post = torch.where(removed.gone, removed.values, post)
    return layer.mlp.fc2(post)


@without_gradients
def run_circuit(
    vit: ViT,
    circuit: Circuit | Iterable[str],
    pairs: Pairs | Tensor,
    *,
    ablation: Ablation = "patch",
    reference: Tensor | None = None,
) -> Float[Tensor, "image class"]:
    """The logits of a circuit on the clean images of some pairs.

    Args:
        vit: the model.
        circuit: a circuit, or names of kept edges with split q/k/v.
        pairs: image pairs; images [image channel height width] do for `zero` and `mean`.
        ablation: what removed edges carry.
        reference: images for `mean`, [image channel height width].

    Raises:
        CircuitError: the circuit, the images or the weights don't fit, or an edge doesn't exist.
    """
    check_vit(vit)
    if not isinstance(circuit, Circuit):
        circuit = Circuit(vit.config, circuit)
    check_circuit(vit, circuit)
    if isinstance(pairs, Tensor):
        clean, corrupt = pairs.to(vit.positions.device), None
    else:
        pairs = pairs.to(vit.positions.device)
        clean, corrupt = pairs.clean, pairs.corrupt
    check_ablation(ablation, corrupt=corrupt, reference=reference)
    for name, images in (("clean images", clean), ("corrupt images", corrupt)):
        if images is not None:
            vit.check_images(images, name=name)
            check_finite(images, name=name)
    plan = RunPlan(vit.config, consistent=ablation == "patch")
    plan.add(circuit.edges, circuit.qkv)
    at_once, logits = images_in_chunk(vit), list[Tensor]()
    known = None if ablation == "patch" else ablated_writes(vit, ablation, reference=reference)
    for some in range(0, len(clean), at_once):
        chunk = slice(some, some + at_once)
        ablated = known
        if ablated is None:
            assert corrupt is not None
            ablated = ablated_writes(vit, "patch", corrupt=corrupt[chunk])
        logits += Runs(vit, plan, clean[chunk], ablated).logits()
    return torch.cat(logits)


def _run(vit: ViT, images: Tensor, mask: EdgeMask, ablated: Tensor) -> Tensor:
    return run_embedded(vit, vit.embed(images), mask, ablated).logits


class MaskedViT(nn.Module):
    """A circuit as a module: the whole model, with the removed edges replaced at every run.

    It computes what the circuit computes but saves nothing; `circuitvit.compile` makes a smaller
    model. Only `zero` and `mean` can run without a corrupt image.

    Args:
        vit: the model; its parameters are shared.
        circuit: the circuit.
        ablation: `zero` or `mean`.
        reference: images for `mean`.
    """

    def __init__(
        self,
        vit: ViT,
        circuit: Circuit,
        *,
        ablation: Ablation = "zero",
        reference: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_vit(vit)
        check_circuit(vit, circuit)
        if ablation == "patch":
            raise CircuitError("a circuit under 'patch' needs corrupt images; use run_circuit.")
        self.vit = ordinary(vit)
        self._mask = EdgeMask.of(vit.config, circuit.edges, circuit.qkv)
        with default_modes(gradients=False):
            values = ablated_values(self.vit, ablation, reference=ordinary(reference))
        self.register_buffer("ablated", values)

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """The circuit's logits for images [image channel height width]."""
        return _run(self.vit, images, self._mask, self.get_buffer("ablated"))
