"""Pass: drops units that nobody reads, and shares equal copies of the stream and equal writes.

Readers share a copy if they keep the same live writers and their tables are equal to the bit. Heads
share a write if the same readers read them. Where pooling takes the class token, a unit that only
`logits` (or such a unit) reads is run at that token alone. What keys and values are made of is
needed at all tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from circuitvit.compiler.program import ConstantTable, Program
from circuitvit.graph.edge_graph import node_named, readers_of, units_of
from circuitvit.models.vit import PARTS


def drop_dead(program: Program) -> Program:
    """The program without heads and MLPs from which no live edge leads on to the logits.

    Constant units are in tables, so nobody reads them either.
    """
    needed, waiting = {"logits"}, ["logits"]
    while waiting:
        for writer in program.live(waiting.pop()):
            node = node_named(writer)
            if node.kind == "embed":
                continue
            readers = [writer] if node.kind == "mlp" else [f"{writer}.{part}" for part in PARTS]
            new = [name for name in readers if name in program.kept and name not in needed]
            needed.update(new)
            waiting += new
    kept = {name: writers for name, writers in program.kept.items() if name in needed}
    return replace(program, kept=kept)


@dataclass(frozen=True)
class Copy:
    """A copy of the stream.

    Attributes:
        readers: its readers; q, k and v apart.
        writers: the live writers that it sums, in forward order.
        table: the constant rest of the sum.
        first: whether it is needed at the first token alone.
    """

    readers: tuple[str, ...]
    writers: tuple[str, ...]
    table: ConstantTable
    first: bool


@dataclass(frozen=True)
class HeadGroup:
    """Heads that attend in one product.

    Attributes:
        heads: their names, those with a shared write next to each other.
        writes: the same heads, by shared write.
        first: whether they are needed at the first token alone.
    """

    heads: tuple[str, ...]
    writes: tuple[tuple[str, ...], ...]
    first: bool


@dataclass(frozen=True)
class SharedBlock:
    """The part of a block that is run.

    Attributes:
        copies: the inputs of its heads.
        groups: its heads.
        mlp: the input of its MLP, if that is run.
    """

    copies: tuple[Copy, ...]
    groups: tuple[HeadGroup, ...]
    mlp: Copy | None


@dataclass(frozen=True)
class Shared:
    """A program with shared copies and writes.

    Attributes:
        program: without dead nodes.
        blocks: in forward order.
        logits: the input of the read-out.
    """

    program: Program
    blocks: tuple[SharedBlock, ...]
    logits: Copy


def share(program: Program) -> Shared:
    """Find the shared copies and writes of a program."""
    first = _needed_at_first(program)
    config = program.vit.config
    blocks = []
    for index, count in enumerate(config.heads):
        heads = [f"a{index}.h{head}" for head in range(count)]
        heads = [head for head in heads if program.runs(head)]
        copies = _copies(program, heads, first)
        mlp = None
        if program.runs(f"m{index}"):
            name = f"m{index}"
            mlp = Copy((name,), program.live(name), program.table(name), name in first)
        blocks.append(SharedBlock(copies, _groups(program, heads, copies, first), mlp))
    at_first = config.pooling == "class"
    logits = Copy(("logits",), program.live("logits"), program.table("logits"), at_first)
    return Shared(program, tuple(blocks), logits)


def _needed_at_first(program: Program) -> set[str]:
    """The units that are needed at the first token alone."""
    config = program.vit.config
    if config.pooling != "class":
        return set()
    everywhere: set[str] = set()
    first: set[str] = set()
    for unit in ("logits", *reversed(units_of(config))):
        at_first = unit not in everywhere
        if at_first and unit != "logits":
            first.add(unit)
        for reader in _readers(program, unit):
            if not at_first or reader[-2:] in (".k", ".v"):
                everywhere.update(program.live(reader))
    return first


def _readers(program: Program, unit: str) -> list[str]:
    """The reader names of a unit that are run: itself, or its q, k and v."""
    names = [f"{unit}.{part}" for part in PARTS] if unit.startswith("a") else [unit]
    return [name for name in names if name in program.kept]


def _copies(program: Program, heads: Iterable[str], first: set[str]) -> tuple[Copy, ...]:
    """The copies that some heads read, those at all tokens before those at the first alone."""
    found: dict[tuple, list[str]] = {}
    tables: dict[tuple, ConstantTable] = {}
    for head in heads:
        for reader in _readers(program, head):
            if reader in program.parts:
                continue
            table, at_first = program.table(reader), reader.endswith(".q") and head in first
            key = (
                at_first,
                program.live(reader),
                tuple(table.shape),
                table.cpu().numpy().tobytes(),
            )
            found.setdefault(key, []).append(reader)
            tables[key] = table
    ordered = sorted(found, key=lambda key: key[0])
    return tuple(Copy(tuple(found[key]), key[1], tables[key], key[0]) for key in ordered)


def _groups(
    program: Program, heads: list[str], copies: tuple[Copy, ...], first: set[str]
) -> tuple[HeadGroup, ...]:
    """Heads grouped by how they attend, in each group by their readers, then by their copies."""
    read_by = _readers_of_heads(program, heads)
    source = {reader: index for index, copy in enumerate(copies) for reader in copy.readers}
    kinds: dict[tuple, list[str]] = {}
    for head in heads:
        pattern, queries = program.patterns.get(head), program.parts.get(f"{head}.q")
        alike = None if queries is None else len(queries) == 1
        kind = (head in first, None if pattern is None else len(pattern), bool(alike))
        kinds.setdefault(kind, []).append(head)
    groups = []
    for kind, members in kinds.items():
        writes: dict[frozenset[str], list[str]] = {}
        for head in members:
            writes.setdefault(read_by[head], []).append(head)
        for together in writes.values():
            together.sort(key=lambda head: [source.get(f"{head}.{p}", -1) for p in PARTS])
        listed = tuple(tuple(together) for together in writes.values())
        groups.append(HeadGroup(tuple(h for w in listed for h in w), listed, kind[0]))
    return tuple(groups)


def _readers_of_heads(program: Program, heads: list[str]) -> Mapping[str, frozenset[str]]:
    """The readers of each head."""
    readers: dict[str, set[str]] = {head: set() for head in heads}
    for reader in readers_of(program.vit.config):
        if reader in program.kept and reader not in program.parts:
            for writer in program.live(reader):
                if writer in readers:
                    readers[writer].add(reader)
    return {head: frozenset(names) for head, names in readers.items()}
