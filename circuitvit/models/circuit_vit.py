"""A compiled circuit as a plain PyTorch model: it computes the edge circuit itself.

Every reader has its own copy of the stream: a sum of the values that it keeps and a table of all
that is constant. Readers with the same copy share it, its LayerNorm and one product; LayerNorms'
scales and shifts are in the weights that follow them, but for the final one's. What is computed,
and in which order, is the model's `Plan`; `explain` says what became of the original.
"""

from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.models.circuit_plan import (
    EMBED,
    BlockPlan,
    Call,
    CopyPlan,
    HeadWrites,
    MLPPlan,
    Plan,
    Projection,
    QkvPart,
    explanation,
)
from circuitvit.models.saved_model import SavedModel
from circuitvit.models.vit import PARTS, ViT, activate

FORMAT = "circuitvit.CircuitViT"

CopiedStream = Float[Tensor, "image _row width"]


class BatchState(NamedTuple):
    """The intermediate values of one batch.

    Attributes:
        images: how many.
        tables: the plan's.
        values: by number, those that somebody will still read.
    """

    images: int
    tables: list[Float[Tensor, "_row width"]]
    values: dict[int, CopiedStream]


class StreamCopy(nn.Module):
    """A copy of the stream: values added up, and a table."""

    def __init__(self, read: CopyPlan) -> None:
        super().__init__()
        self.read = read

    def forward(self, run: "BatchState") -> CopiedStream:
        """The copy; its sum is put among the values, if others need it."""
        table = None if self.read.table is None else run.tables[self.read.table]
        parts = [run.values[index] for index in self.read.values]
        if not parts:
            assert table is not None
            return table.expand(run.images, -1, -1)
        total = reduce(torch.add, [x[:, :1] if self.read.first else x for x in parts])
        if self.read.sum is not None:
            run.values[self.read.sum] = total
        return total if table is None else total + table


class Projecting(nn.Module):
    """All queries, keys and values of a block that read the same copy of the stream."""

    def __init__(self, config: ViTConfig, plan: Projection, head_width: int) -> None:
        super().__init__()
        self.slots, self.eps = plan.slots, config.layer_norm_eps
        self.reading = StreamCopy(plan.read)
        self.linear = nn.Linear(config.width, plan.slots * head_width)

    def forward(self, run: BatchState) -> Float[Tensor, "image slot _row head_width"]:
        """One slot for the queries, keys or values of a head."""
        x = normalized(self.reading(run), self.eps)
        return self.linear(x).unflatten(-1, (self.slots, -1)).transpose(1, 2)


class CircuitAttention(nn.Module):
    """Heads of a block that attend in one product."""

    def __init__(self, config: ViTConfig, plan: Call, head_width: int) -> None:
        super().__init__()
        self.plan, self.tokens, self.scale = plan, config.tokens, head_width**-0.5
        q, k, v = (
            _table(rows, head_width, plan.in_table(part)) if plan.in_table(part) else None
            for part, rows in zip(PARTS, plan.tables, strict=True)
        )
        self.q_table, self.k_table, self.v_table = q, k, v
        heads = len(plan.heads)
        self.pattern = _table(plan.pattern, config.tokens, heads) if plan.pattern else None

    def forward(
        self,
        projected: list[Float[Tensor, "image _slot _row head_width"]],
        norms: dict[str, nn.Module],
        images: int,
    ) -> Float[Tensor, "image head _row head_width"]:
        """The heads' z: their values, mixed by their patterns."""

        def of(part: QkvPart) -> Tensor:
            return self._taken(part, projected, norms.get(part), images)

        v = of("v")
        if self.pattern is not None:
            return self.pattern @ v
        return F.scaled_dot_product_attention(of("q"), of("k"), v, scale=self.scale)

    def _taken(
        self, part: QkvPart, projected: list[Tensor], norm: nn.Module | None, images: int
    ) -> Float[Tensor, "image head _row head_width"]:
        """The queries, keys or values, from the plan's sources."""
        table = {"q": self.q_table, "k": self.k_table, "v": self.v_table}[part]
        taken: list[Tensor] = []
        for source in self.plan.sources(part):
            here = slice(source.start, source.start + source.heads)
            if source.projection is None:
                assert table is not None
                taken.append(table[here].expand(images, -1, -1, -1))
            else:
                slots = projected[source.projection][:, here]
                taken.append(slots if norm is None else norm(slots))
        rows = self.plan.rows if part == "q" else self.tokens
        taken = [x if x.shape[2] == rows else x.expand(-1, -1, rows, -1) for x in taken]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


class Writing(nn.Module):
    """The common write of some heads."""

    def __init__(self, config: ViTConfig, plan: HeadWrites, head_width: int) -> None:
        super().__init__()
        self.plan = plan
        self.linear = nn.Linear(plan.heads * head_width, config.width, bias=False)
        self.table = _table(plan.table, config.width)

    def forward(self, z: Float[Tensor, "image head _row head_width"]) -> CopiedStream:
        """Their z by their W_O, and the table."""
        z = z[:, self.plan.start : self.plan.start + self.plan.heads]
        written = self.linear(z.transpose(1, 2).flatten(2))
        return written if self.table is None else written + self.table


class CircuitMLP(nn.Module):
    """An MLP with its own copy of the stream."""

    def __init__(self, config: ViTConfig, plan: MLPPlan) -> None:
        super().__init__()
        self.activation, self.eps = config.activation, config.layer_norm_eps
        self.reading = StreamCopy(plan.read)
        self.fc1 = nn.Linear(config.width, plan.neurons)
        self.fc2 = nn.Linear(plan.neurons, config.width, bias=False)
        self.table = nn.Parameter(torch.zeros(plan.table, config.width))

    def forward(self, run: BatchState) -> CopiedStream:
        """The write of the MLP; its bias is in the table."""
        hidden = self.fc1(normalized(self.reading(run), self.eps))
        hidden = activate(self.activation, hidden)
        if len(self.table) == 1:
            return F.linear(hidden, self.fc2.weight, self.table[0])
        return self.fc2(hidden) + self.table


class CircuitBlock(nn.Module):
    """One block: it reads values, and adds its own."""

    def __init__(self, config: ViTConfig, plan: BlockPlan) -> None:
        super().__init__()
        self.plan, width = plan, plan.head_width
        self.projections = nn.ModuleList(Projecting(config, p, width) for p in plan.projections)
        self.calls = nn.ModuleList(CircuitAttention(config, call, width) for call in plan.calls)
        self.writes = nn.ModuleList(Writing(config, write, width) for write in plan.writes)
        self.mlp = None if plan.mlp is None else CircuitMLP(config, plan.mlp)
        live = {
            part
            for part in ("q", "k")
            for call in plan.calls
            if call.in_table(part) < sum(source.heads for source in call.sources(part))
        }
        norms = sorted(live) if config.qk_norm else []
        self.norms = nn.ModuleDict(
            {part: nn.LayerNorm(width, config.layer_norm_eps) for part in norms}
        )

    def forward(self, run: BatchState) -> None:
        """Run the block on the values, and put its own among them."""
        projected = [projection(run) for projection in self.projections]
        norms = dict(self.norms.items())
        z = [call(projected, norms, run.images) for call in self.calls]
        for plan, write in zip(self.plan.writes, self.writes, strict=True):
            run.values[plan.value] = write(z[plan.call])
        if self.plan.mlp is not None and self.mlp is not None:
            run.values[self.plan.mlp.value] = self.mlp(run)


class CircuitViT(SavedModel):
    """A circuit of a ViT, compiled to what it computes; made by `compile(level="edge")`.

    Args:
        config: of the ViT that was compiled.
        plan: what is computed.

    Attributes:
        config: the same; images and classes are as they were.
        plan: the same.
    """

    def __init__(self, config: ViTConfig, plan: Plan) -> None:
        super().__init__()
        self.config, self.plan = config, plan
        with torch.inference_mode(False):  # its tensors could not be trained
            self.ends = ViT(without_blocks(config))  # whole, even where nobody reads the embedding
            self.blocks = nn.ModuleList(CircuitBlock(config, block) for block in plan.blocks)
            self.logits = StreamCopy(plan.logits)
            self.tables = nn.ParameterList(torch.zeros(rows, config.width) for rows in plan.tables)
        self._done: list[list[int]] = [[] for _ in range(len(plan.blocks) + 1)]
        for value, block in plan.last_uses().items():
            self._done[block].append(value)
        self._embeds = EMBED in plan.last_uses()

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """Logits of a batch of images [image channel height width].

        Raises:
            CircuitError: the images have another shape or dtype than the model.
        """
        self.check_images(images)
        values = {EMBED: self.ends.embed(images)} if self._embeds else {}
        run = BatchState(images.shape[0], list(self.tables), values)
        for block, done in zip(self.blocks, self._done[:-1], strict=True):
            block(run)
            for value in done:
                del values[value]
        stream = self.logits(run)
        if self.config.pooling != "class":
            stream = stream.expand(-1, self.config.tokens, -1)
        return self.ends.read_out(stream)

    def check_images(self, images: Tensor, *, name: str = "images") -> None:
        """Refuse images that the model can't take.

        Raises:
            CircuitError: they have another shape or dtype than the model.
        """
        self.ends.check_images(images, name=name)

    def units_kept(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heads, and neurons of the MLP, that are run in each block."""
        blocks = self.plan.blocks
        heads = tuple(sum(len(call.heads) for call in block.calls) for block in blocks)
        return heads, tuple(0 if b.mlp is None else b.mlp.neurons for b in blocks)

    def explain(self) -> str:
        """The removed, folded, static and shared parts of each block, and the savings."""
        return explanation(self.config, self.plan)

    def shape_as_dict(self) -> dict[str, Any]:
        """The config and the plan."""
        return {"format": FORMAT, "vit": self.config.as_dict(), "plan": self.plan.as_dict()}

    @classmethod
    def of_shape(cls, shape: Any) -> "CircuitViT":
        """A model of what `shape_as_dict` gave.

        Raises:
            CircuitError: it is something else.
        """
        if not isinstance(shape, dict) or shape.get("format") != FORMAT:
            raise CircuitError(
                "this is not the config of a compiled circuit. Models of other kinds are loaded "
                "with circuitvit.load_vit(folder)."
            )
        config, plan = ViTConfig.from_dict(shape.get("vit")), Plan.from_dict(shape.get("plan"))
        if len(plan.blocks) != config.depth:
            raise CircuitError(
                f"the plan of this compiled circuit has {len(plan.blocks)} blocks, its config "
                f"{config.depth}: it was damaged or altered. Compile and save the circuit again."
            )
        return cls(config, plan)


def normalized(x: CopiedStream, eps: float) -> CopiedStream:
    """A LayerNorm without scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def without_blocks(config: ViTConfig) -> ViTConfig:
    """The two ends of a ViT: what embeds, and what reads out."""
    return replace(
        config, heads=(), head_width=(), mlp_width=(),
        output_bias=(), attention_constant=(), mlp_constant=(),
    )  # fmt: skip


def _table(rows: int, width: int, heads: int | None = None) -> nn.Parameter | None:
    if not rows:
        return None
    shape = (rows, width) if heads is None else (heads, rows, width)
    return nn.Parameter(torch.zeros(shape))
