"""Parameters and multiply-accumulates.

MACs of a ViT are counted from its shape, attention products included; LayerNorms, activations,
sums and softmax are left out, as torch's counter does. They equal half of what
`torch.utils.flop_counter` counts under the math attention kernel (fused ones count as zero).

The table of costs times each part of a ViT on this machine, and predicts a model's time from it.
Parts are `embed`, an attention with so many heads of a width, an MLP with so many neurons (each
with its LayerNorm and its sum with the stream), an `addition` to the stream (of a constant, or of
the b_O of an empty attention) and `read_out`. Each is timed alone with weights of its exact shape,
so the effect of parts on each other's caches is left out.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from circuitvit.charts.tables import html_table, markdown_table
from circuitvit.checks import whole
from circuitvit.config import PER_BLOCK, ViTConfig
from circuitvit.errors import CircuitError, in_short
from circuitvit.escaping import markdown_text
from circuitvit.files.records import COSTS
from circuitvit.files.restoring import load_record
from circuitvit.measure.models.latency import WARM_UPS, interleaved, machine_of
from circuitvit.models.vit import ViT
from circuitvit.torch_modes import evaluating, in_default_modes


def parameters(model: nn.Module) -> int:
    """Number of parameters, constants of removed units included."""
    told = getattr(model, "parameter_count", None)  # an ONNX model holds none itself
    return (
        told
        if isinstance(told, int)
        else sum(parameter.numel() for parameter in model.parameters())
    )


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one image of shape [channel height width]."""
    model = uncompiled(model)
    told = getattr(model, "mac_count", None)
    if isinstance(told, int):
        return told
    return vit_macs(model.config) if isinstance(model, ViT) else counted_macs(model, image_shape)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; any other model as it is."""
    return getattr(model, "_orig_mod", model)


def vit_macs(config: ViTConfig) -> int:
    """Multiply-accumulates of a ViT of this shape for one image."""
    tokens, width = config.tokens, config.width
    total = config.patches * width * config.channels * config.patch_size**2
    for heads, head_width, neurons in zip(
        config.heads, config.head_width, config.mlp_width, strict=True
    ):
        inner = heads * head_width
        total += 4 * tokens * width * inner + 2 * tokens * tokens * inner
        total += 2 * tokens * width * neurons
    return total + config.pooled * width * config.classes


def vit_parameters(config: ViTConfig) -> int:
    """Number of parameters of a ViT of this shape, constants of removed units included."""
    width, constant = config.width, config.tokens * config.width
    total = config.channels * config.patch_size**2 * width + width + constant
    total += (config.class_token + config.register_tokens) * width
    for block in range(config.depth):
        head_width, neurons = config.head_width[block], config.mlp_width[block]
        inner = config.heads[block] * head_width
        if inner:
            total += 2 * width + 4 * inner * width
            total += 3 * inner * config.qkv_bias + 4 * head_width * config.qk_norm
        if neurons:
            total += 2 * width + (2 * width + 1) * neurons + width
        total += width * config.output_bias[block]
        total += constant * (config.attention_constant[block] + config.mlp_constant[block])
    norms = 2 * width * (1 + config.embed_norm)
    return total + norms + (config.pooled * width + 1) * config.classes


def counted_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates as torch's counter sees them, for any module."""
    parameter = next(model.parameters(), torch.zeros(()))
    images = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(images)
    return counter.get_total_flops() // 2


MLP_WIDTHS = 9
"""At most so many MLP widths are measured; the others lie between them."""
PARTS = {"embed": 0, "attention": 2, "mlp": 1, "addition": 0, "read_out": 0}
CostPart = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Cost:
    """The time of one part.

    Attributes:
        op: `embed`, `attention`, `mlp`, `addition` or `read_out`.
        shape: (heads, head_width) of an attention, (neurons,) of an MLP, () of the others.
        median_ms: median over the rounds, in milliseconds for a batch.
        iqr_ms: interquartile range of it.
    """

    op: str
    shape: tuple[int, ...]
    median_ms: float
    iqr_ms: float = 0.0


@dataclass(frozen=True)
class Costs:
    """A table of measured times; in a notebook it shows itself.

    Attributes:
        config: the ViT whose parts were measured; tokens, width and the like are fixed by it.
        batch: images at once.
        rows: one a part.
        dtype: precision of weights and images, such as `float32`.
        rounds: how often each part was timed.
        machine: processor, threads, device and versions.

    Raises:
        CircuitError: a row names no part, comes twice, or has a time that is none.
    """

    config: ViTConfig
    batch: int
    rows: tuple[Cost, ...]
    dtype: str = "float32"
    rounds: int = 0
    machine: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        known = [(row.op, row.shape) for row in self.rows]
        bad = [
            row
            for row in self.rows
            if PARTS.get(row.op) != len(row.shape)
            or not 0 <= row.median_ms < math.inf
            or known.count((row.op, row.shape)) > 1
        ]
        if bad:
            raise CircuitError(
                f"{len(bad)} rows can't stand in a table of costs, such as {in_short(bad[0])}: "
                "expected an op among embed, attention (heads, head_width), mlp (neurons,), "
                "addition and read_out, each shape once, with milliseconds ≥ 0."
            )

    def predict(self, config: ViTConfig) -> float:
        """Milliseconds that a batch takes in a ViT of this shape: the sum of its parts.

        An MLP width between two measured ones is interpolated.

        Raises:
            CircuitError: a part was not measured, or the shape differs in more than heads, neurons
                and constants.
        """
        differing = self.differing(config)
        if differing:
            raise CircuitError(
                f"these costs were measured for a ViT with another {', '.join(differing)}. Measure "
                "them for this one: measure_costs(vit.config)."
            )
        table = {(row.op, row.shape): row.median_ms for row in self.rows}
        return math.fsum(self._milliseconds(table, part) for part in cost_parts(config))

    def differing(self, config: ViTConfig) -> list[str]:
        """Fields in which a ViT differs from those whose time this table can predict."""
        names = [field.name for field in fields(config) if field.name not in PER_BLOCK]
        return [name for name in names if getattr(config, name) != getattr(self.config, name)]

    def _milliseconds(self, table: Mapping[CostPart, float], part: CostPart) -> float:
        if part in table:
            return table[part]
        op, shape = part
        widths = sorted(known[0] for kind, known in table if kind == "mlp") if op == "mlp" else []
        if not widths or not widths[0] <= shape[0] <= widths[-1]:
            raise CircuitError(
                f"these costs have no {op} of shape {shape}; measured are "
                f"{sorted(known for kind, known in table if kind == op)}. Measure it too: "
                "measure_costs(vit.config, shapes=[config])."
            )
        return float(np.interp(shape[0], widths, [table["mlp", (width,)] for width in widths]))

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        header = ["part", f"ms, batch {self.batch}", "interquartile range"]
        rows = [[_named(r), f"{r.median_ms:z.4g}", f"{r.iqr_ms:z.2g}"] for r in self.rows]
        return [header, *rows]

    def markdown(self) -> str:
        """The table and how it was measured, as Markdown."""
        machine = ", ".join(f"{key} {value}" for key, value in (self.machine or {}).items())
        notes = f"{self.config.tokens} tokens of width {self.config.width}, {self.dtype}"
        notes = f"{notes}; {self.rounds} interleaved rounds; {machine or 'machine not stated'}"
        return f"{markdown_table(self.table())}\n\n{markdown_text(notes)}.\n"

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        body = {field.name: getattr(self, field.name) for field in fields(self)}
        body |= {"config": self.config.as_dict(), "rows": [asdict(row) for row in self.rows]}
        return COSTS.marked(body)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as JSON.

        Raises:
            CircuitError: the file can't be written.
        """
        return COSTS.write(path, self.as_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Costs":
        """Read a table that `save` wrote.

        Raises:
            CircuitError: the file is missing, cut short, or something else.
        """
        return load_record(path, COSTS, cls)


@in_default_modes
def measure_costs(
    config: ViTConfig,
    *,
    shapes: Iterable[ViTConfig] | None = None,
    batch: int = 64,
    rounds: int = 15,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Costs:
    """Time each part of a ViT and of the smaller ones that can be cut out of it.

    Parts are timed in interleaved rounds, after warm-ups, in inference mode and with random
    weights. At most 9 MLP widths are measured; `Costs.predict` interpolates between them.

    Args:
        config: the model's shape, `vit.config`.
        shapes: measure only the parts of these and of `config`; by default every number of heads
            that the blocks can be left with, and MLPs from 1 neuron to all.
        batch: images at once.
        rounds: how often each part is timed, ≥ 3.
        device: where it is to run.
        dtype: precision of weights and images.

    Raises:
        CircuitError: a number is too small, or a shape differs in more than heads, neurons and
            constants.
    """
    batch, rounds = whole(batch, "batch"), whole(rounds, "rounds")
    if not isinstance(config, ViTConfig) or batch < 1 or rounds < 3:
        raise CircuitError(
            f"expected measure_costs(vit.config) with batch ≥ 1 and rounds ≥ 3, got a "
            f"{type(config).__name__}, {batch} and {rounds}."
        )
    device = torch.device(device)
    nothing = Costs(config, batch, (), str(dtype).removeprefix("torch."), rounds)
    parts = _everything(config) if shapes is None else _needed(nothing, list(shapes))
    calls = {str(part): call_of(config, part, batch, device, dtype) for part in parts}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(WARM_UPS):
                call()
    seconds = interleaved(calls, rounds)
    rows = []
    for op, shape in parts:
        low, median, high = np.percentile(1e3 * seconds[str((op, shape))], [25, 50, 75])
        rows.append(Cost(op, shape, float(median), float(high - low)))
    return replace(nothing, rows=tuple(rows), machine=machine_of(device))


def cost_parts(config: ViTConfig) -> Iterator[CostPart]:
    """The parts of a ViT of this shape, in forward order."""
    yield "embed", ()
    for block in range(config.depth):
        heads, neurons = config.heads[block], config.mlp_width[block]
        if heads:
            yield "attention", (heads, config.head_width[block])
        elif config.output_bias[block]:
            yield "addition", ()
        if config.attention_constant[block]:
            yield "addition", ()
        if neurons:
            yield "mlp", (neurons,)
        if config.mlp_constant[block]:
            yield "addition", ()
    yield "read_out", ()


def _everything(config: ViTConfig) -> list[CostPart]:
    """Every part that can be left of a ViT, with a few MLP widths for all."""
    most: dict[int, int] = {}
    for heads, head_width in zip(config.heads, config.head_width, strict=True):
        most[head_width] = max(heads, most.get(head_width, 0))
    parts: list[CostPart] = [("embed", ()), ("addition", ()), ("read_out", ())]
    parts += [("attention", (h, w)) for w, count in most.items() for h in range(1, count + 1)]
    most_neurons = max(config.mlp_width, default=0)
    eighths = {-(-most_neurons * k // (MLP_WIDTHS - 1)) for k in range(1, MLP_WIDTHS)}
    widths = sorted({1, *eighths}) if most_neurons else []
    return _ordered([*parts, *(("mlp", (width,)) for width in widths)])


def _needed(costs: Costs, shapes: Sequence[ViTConfig]) -> list[CostPart]:
    """The parts of some ViTs, with a few MLP widths for all where they are many."""
    for shape in shapes:
        if not isinstance(shape, ViTConfig) or costs.differing(shape):
            raise CircuitError(
                f"shapes hold {shape!r}, expected ViTConfigs that differ from {costs.config!r} "
                "in heads, neurons and constants only."
            )
    parts = {part for shape in (costs.config, *shapes) for part in cost_parts(shape)}
    widths = sorted(shape[0] for op, shape in parts if op == "mlp")
    if len(widths) > MLP_WIDTHS:
        places = np.linspace(0, len(widths) - 1, MLP_WIDTHS).round().astype(int)
        parts = {part for part in parts if part[0] != "mlp"}
        parts |= {("mlp", (widths[place],)) for place in places}
    return _ordered(parts)


def _ordered(parts: Iterable[CostPart]) -> list[CostPart]:
    return sorted(parts, key=lambda part: (list(PARTS).index(part[0]), part[1]))


def call_of(
    config: ViTConfig, part: CostPart, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """What computes a part, on images or a stream that are there already."""
    (op, shape), added = part, part[0] == "addition"
    heads, head_width = shape if op == "attention" else (0, 1)
    alone = replace(
        config,
        heads=(heads,), head_width=(head_width,), mlp_width=shape if op == "mlp" else (0,),
        output_bias=(op == "attention" and any(config.output_bias),),
        attention_constant=(added,), mlp_constant=(False,),
    )  # fmt: skip
    vit = ViT(alone, seed=0).to(device, dtype).eval()
    generator = torch.Generator().manual_seed(0)
    if op == "embed":
        images = torch.randn(
            batch, config.channels, config.image_size, config.image_size, generator=generator
        )
        return partial(vit.embed, images.to(device, dtype))
    stream = torch.randn(batch, config.tokens, config.width, generator=generator)
    return partial(vit.read_out if op == "read_out" else vit.blocks[0], stream.to(device, dtype))


def _named(row: Cost) -> str:
    if row.op == "attention":
        return f"attention, {row.shape[0]} heads of width {row.shape[1]}"
    return f"MLP, {row.shape[0]} neurons" if row.op == "mlp" else row.op.replace("_", "-")
