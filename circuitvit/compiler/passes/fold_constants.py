"""Pass: what does not depend on the image is computed once and becomes a table.

A reader without a live writer reads a table. An MLP that reads a table writes one. Queries, keys
and values that read a table are tables. If queries and keys are, the attention pattern is; if all
keys are equal, the pattern is uniform for any queries. A head writes a table if its values are a
table and either the pattern is one or all values are equal.
"""

from dataclasses import replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitvit.compiler.program import ConstantTable, Program
from circuitvit.graph.edge_graph import Node, node_named, units_of
from circuitvit.intervene.ablated_run import mlp_value, project
from circuitvit.models.vit import PARTS


def fold_constants(program: Program) -> Program:
    """The program with constant units, parts of heads and patterns folded, in forward order."""
    for name in units_of(program.vit.config):
        node = node_named(name)
        if node.kind == "head" and f"{name}.v" in program.kept:
            program = _with_head(program, node)
        elif name in program.kept and not program.live(name):
            read = program.table(name)[None]
            value = mlp_value(program.mlp(node), read)[0]
            program = _with_constant(program, name, value, [name])
    return program


def _with_constant(
    program: Program, unit: str, value: ConstantTable, readers: list[str]
) -> Program:
    kept = {name: kept for name, kept in program.kept.items() if name not in readers}
    return replace(program, constants={**program.constants, unit: value}, kept=kept)


def _with_head(program: Program, node: Node) -> Program:
    """The program with the constant parts of a head folded."""
    name = node.name
    parts = {
        part: _part(program, node, part) for part in PARTS if not program.live(f"{name}.{part}")
    }
    pattern = _pattern(program, node, parts)
    if pattern is not None:
        parts = {part: table for part, table in parts.items() if part == "v"}
        unread = [f"{name}.q", f"{name}.k"]
        kept = {reader: k for reader, k in program.kept.items() if reader not in unread}
        program = replace(program, kept=kept, patterns={**program.patterns, name: pattern})
    z = _constant_z(program, parts, pattern)
    if z is not None:
        weight = _output_weight(program, node)
        patterns = {head: p for head, p in program.patterns.items() if head != name}
        program = replace(program, patterns=patterns)
        return _with_constant(program, name, z @ weight, [f"{name}.{part}" for part in PARTS])
    named = {f"{name}.{part}": table for part, table in parts.items()}
    return replace(program, parts={**program.parts, **named})


def _part(program: Program, node: Node, part: str) -> Float[Tensor, "_row head_width"]:
    """The queries, keys or values of a head that read a table."""
    layer, head = program.attention(node), node.head_index
    read = layer.norm(program.table(f"{node.name}.{part}"))[None, None]
    return project(layer.attention, part, read, slice(head, head + 1))[0, 0]


def _pattern(
    program: Program, node: Node, parts: dict[str, Tensor]
) -> Float[Tensor, "_row token"] | None:
    tokens = program.vit.config.tokens
    if "k" not in parts:
        return None
    if len(parts["k"]) == 1:
        return parts["k"].new_full((1, tokens), 1 / tokens)
    if "q" not in parts:
        return None
    scale = parts["k"].shape[1] ** -0.5
    return F.softmax(parts["q"] @ parts["k"].mT * scale, dim=-1)


def _constant_z(
    program: Program, parts: dict[str, Tensor], pattern: Tensor | None
) -> Float[Tensor, "_row head_width"] | None:
    values = parts.get("v")
    if values is None or len(values) == 1:
        return values
    return None if pattern is None else pattern @ values


def _output_weight(program: Program, node: Node) -> Float[Tensor, "head_width width"]:
    return program.attention(node).output_weight(node.head_index)
