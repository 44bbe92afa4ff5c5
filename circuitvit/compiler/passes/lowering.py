"""Pass: turns a shared program into a plan and its weights, a plain PyTorch model.

Weights are cut to the exact shapes, and the LayerNorms' scales and shifts are folded into them. A
sum that several copies contain is computed once. With Σ over the writers w before a reader, a copy
is Σ_kept a_w + Σ_removed ã_w = Σ_kept (a_w − ã_w) + Σ_all ã_w. Under `mean`, the form with fewer
parameters is chosen: tables in the copies (left), or also in the writers (right).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitvit.compiler.passes.sharing import Copy, HeadGroup, Shared, SharedBlock
from circuitvit.compiler.program import ConstantTable, Program
from circuitvit.graph.edge_graph import node_named
from circuitvit.models.circuit_plan import (
    EMBED,
    BlockPlan,
    Call,
    CopyPlan,
    HeadWrites,
    MLPPlan,
    Plan,
    Projection,
    Source,
)
from circuitvit.models.circuit_vit import CircuitViT
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, SubLayer, sublayers_of
from circuitvit.models.vit import PARTS, Attention, ViT


def lower(shared: Shared, dtype: torch.dtype) -> CircuitViT:
    """The model that computes a shared program."""
    both = [_Lowering(shared, shifted) for shifted in (False, True)]
    models = [lowering.plan() for lowering in both]
    sizes = [lowering.numbers_in_tables() for lowering in both]
    best = 1 if sizes[1] < sizes[0] else 0
    vit = shared.program.vit
    weights = {**both[best].weights, **_ends(vit, both[best])}
    with torch.device("meta"):
        model = CircuitViT(vit.config, models[best])
    copies = {
        name: w.detach().to(dtype).clone(memory_format=torch.contiguous_format)
        for name, w in weights.items()
    }
    model.preprocessing = vit.preprocessing
    return model.take_over(copies, source="the compiler").train(vit.training)


def _ends(vit: ViT, lowering: "_Lowering") -> dict[str, Tensor]:
    ends = {k: v for k, v in vit.state_dict().items() if not k.startswith("blocks.")}
    shift = lowering.shift("embed")
    if shift is not None:  # never where a LayerNorm follows the positions
        ends["positions"] = ends["positions"] + shift
    return {f"ends.{name}": value for name, value in ends.items()}


@dataclass
class _Lowering:
    """One way to lower a program; `weights` is filled while the plan is made.

    Attributes:
        shared: the program.
        shifted: whether writers write a − ã.
        weights: of the model, by name.
        tables: of the copies.
        shifts: number of parameters in the writers' tables.
    """

    shared: Shared
    shifted: bool
    weights: dict[str, Tensor] = field(default_factory=dict)
    tables: list[ConstantTable] = field(default_factory=list)
    shifts: int = 0

    def __post_init__(self) -> None:
        self.program: Program = self.shared.program
        self._tokens = self.program.vit.config.tokens
        self._values: dict[str, int] = {"embed": EMBED}
        self._rows = {EMBED: self._tokens}
        self._sums: dict[int, frozenset[int]] = {EMBED: frozenset({EMBED})}
        self._anywhere: set[int] = {EMBED}
        self._next = EMBED + 1

    def numbers_in_tables(self) -> int:
        """The number of parameters in all tables."""
        return self.shifts + sum(table.numel() for table in self.tables)

    def plan(self) -> Plan:
        """The plan; a sum that isn't used again isn't kept."""
        blocks = [self._block(index, block) for index, block in enumerate(self.shared.blocks)]
        logits = self._read(self.shared.logits)
        for index, table in enumerate(self.tables):
            self.weights[f"tables.{index}"] = table
        plan = Plan(tuple(blocks), logits, tuple(len(table) for table in self.tables))
        return _without_unused_sums(plan)

    def shift(self, writer: str, *, first: bool = False) -> ConstantTable | None:
        """−ã of a writer, if it writes a − ã and ã isn't zero."""
        if not self._shifts(writer):
            return None
        value = self.program.ablated_of(writer)
        if not bool(value.any()):
            return None
        return -value[:1] if first else -value

    def _shifts(self, writer: str) -> bool:
        """Whether a writer writes a − ã; `embed` can't if it ends in a LayerNorm."""
        fixed = writer == "embed" and self.program.vit.config.embed_norm
        return self.shifted and not fixed

    def _new(self, rows: int) -> int:
        self._rows[self._next] = rows
        self._next += 1
        return self._next - 1

    def _read(self, copy: Copy) -> CopyPlan:
        """How a copy is summed from known values, the largest known sums in it first."""
        wanted = frozenset(self._values[name] for name in copy.writers)
        rest, values = wanted, list[int]()
        while rest:
            usable = (v for v in self._sums if self._sums[v] <= rest
                      and (copy.first or v in self._anywhere))  # fmt: skip
            best = max(usable, key=lambda value: (len(self._sums[value]), value))
            values.append(best)
            rest -= self._sums[best]
        table = self._table(copy)
        rows = 1 if copy.first else max([self._rows[v] for v in values], default=1)
        own = None
        if len(values) > 1:
            own = self._new(rows)
            self._sums[own] = wanted
            self._anywhere |= set() if copy.first else {own}
        held = 1 if table is None else len(self.tables[table])
        return CopyPlan(tuple(values), table, max(rows, held), copy.first, own)

    def _table(self, copy: Copy) -> int | None:
        """The number of a copy's table; equal tables are shared."""
        shifted = (self.program.ablated_of(w) for w in copy.writers if self._shifts(w))
        table = sum(shifted, start=copy.table)
        table = table[:1] if copy.first else table
        if copy.writers and not bool(table.any()):
            return None
        for index, known in enumerate(self.tables):
            if known.shape == table.shape and torch.equal(known, table):
                return index
        self.tables.append(table)
        return len(self.tables) - 1

    def _block(self, index: int, shared: SharedBlock) -> BlockPlan:
        attention, mlp_place = sublayers_of(self.program.vit, index)
        prefix = f"blocks.{index}."
        slots = [_slots(copy, shared.groups) for copy in shared.copies]
        projections = tuple(
            Projection(self._read(copy), len(readers))
            for copy, readers in zip(shared.copies, slots, strict=True)
        )
        for number, readers in enumerate(slots):
            weight, bias = _projection(attention, readers)
            self.weights[f"{prefix}projections.{number}.linear.weight"] = weight
            self.weights[f"{prefix}projections.{number}.linear.bias"] = bias
        rows = [projection.read.rows for projection in projections]
        calls = tuple(
            self._call(f"{prefix}calls.{number}.", group, slots, rows)
            for number, group in enumerate(shared.groups)
        )
        writes = tuple[HeadWrites, ...]()
        if isinstance(attention, AttentionLayer):
            self._norms(prefix, attention.attention, calls)
            writes = tuple(self._writes(prefix, attention.attention, shared.groups, calls))
        mlp = None
        if shared.mlp is not None and isinstance(mlp_place, MlpLayer):
            mlp = self._mlp(f"{prefix}mlp.", mlp_place, shared.mlp)
        constant = (n for n in self.program.constants if node_named(n).block == index)
        width = self.program.vit.config.head_width[index]
        return BlockPlan(width, projections, calls, writes, mlp, tuple(constant))

    def _call(self, prefix: str, group: HeadGroup, slots: list[list[str]], rows: list[int]) -> Call:
        heads = tuple(node_named(name).head or 0 for name in group.heads)
        patterns = [self.program.patterns.get(name) for name in group.heads]
        tables = {part: self._part_table(group, part) for part in PARTS}
        for part, table in tables.items():
            if table is not None:
                self.weights[f"{prefix}{part}_table"] = table
        known = [pattern for pattern in patterns if pattern is not None]
        sources = {part: () if known and part != "v" else _sources(group, part, slots)
                   for part in PARTS}  # fmt: skip
        made = self._tokens
        if known:
            pattern = torch.stack([p[:1] if group.first else p for p in known])
            self.weights[f"{prefix}pattern"] = pattern
            made = pattern.shape[1]
        else:
            held = [] if tables["q"] is None else [tables["q"].shape[1]]
            made = max(
                held + [rows[s.projection] for s in sources["q"] if s.projection is not None]
            )
        q, k, v = (0 if t is None else t.shape[1] for t in tables.values())
        return Call(
            heads, made if known else 0, sources["q"], sources["k"], sources["v"], (q, k, v), made
        )

    def _part_table(
        self, group: HeadGroup, part: str
    ) -> Float[Tensor, "head _row head_width"] | None:
        names = [f"{head}.{part}" for head in group.heads]
        tables = [self.program.parts[name] for name in names if name in self.program.parts]
        if not tables:
            return None
        if part == "q" and group.first:
            tables = [table[:1] for table in tables]
        return torch.stack(tables)

    def _norms(self, prefix: str, attention: Attention, calls: tuple[Call, ...]) -> None:
        """The LayerNorms of queries and keys, where these are projected."""
        for part in ("q", "k"):
            norm = {"q": attention.q_norm, "k": attention.k_norm}[part]
            projected = any(s.projection is not None for c in calls for s in c.sources(part))
            if norm is not None and projected:
                self.weights[f"{prefix}norms.{part}.weight"] = norm.weight
                self.weights[f"{prefix}norms.{part}.bias"] = norm.bias

    def _writes(
        self,
        prefix: str,
        attention: Attention,
        groups: tuple[HeadGroup, ...],
        calls: tuple[Call, ...],
    ) -> Iterator[HeadWrites]:
        number = 0
        for index, (group, call) in enumerate(zip(groups, calls, strict=True)):
            start = 0
            for heads in group.writes:
                own = [node_named(name).head_index for name in heads]
                weight = attention.output_weight()[own].flatten(0, 1).T
                self.weights[f"{prefix}writes.{number}.linear.weight"] = weight
                shifts = [self.shift(name, first=group.first) for name in heads]
                table = _added([shift for shift in shifts if shift is not None])
                if table is not None:
                    self.weights[f"{prefix}writes.{number}.table"] = table
                    self.shifts += table.numel()
                held = 0 if table is None else len(table)
                value = self._written(heads, max(call.rows, held), group.first)
                yield HeadWrites(index, start, len(heads), value, held)
                start, number = start + len(heads), number + 1

    def _written(self, units: tuple[str, ...], rows: int, first: bool) -> int:
        value = self._new(rows)
        self._sums[value] = frozenset({value})
        self._anywhere |= set() if first else {value}
        self._values |= dict.fromkeys(units, value)
        return value

    def _mlp(self, prefix: str, layer: MlpLayer, copy: Copy) -> MLPPlan:
        mlp = layer.mlp
        weight, bias = layer.folded()
        name = copy.readers[0]
        read = self._read(copy)
        shift = self.shift(name, first=copy.first)
        table = mlp.fc2.bias[None] if shift is None else mlp.fc2.bias + shift
        self.shifts += 0 if shift is None else table.numel()
        self.weights |= {
            f"{prefix}fc1.weight": weight,
            f"{prefix}fc1.bias": bias,
            f"{prefix}fc2.weight": mlp.fc2.weight,
            f"{prefix}table": table,
        }
        value = self._written((name,), max(read.rows, len(table)), copy.first)
        return MLPPlan(read, len(mlp.fc1.bias), value, len(table))


def _slots(copy: Copy, groups: tuple[HeadGroup, ...]) -> list[str]:
    """A copy's readers, sorted so that those of a group's part are next to each other."""
    wanted = [f"{head}.{part}" for group in groups for part in PARTS for head in group.heads]
    return [name for name in wanted if name in copy.readers]


def _sources(group: HeadGroup, part: str, slots: list[list[str]]) -> tuple[Source, ...]:
    """The sources of a group's queries, keys or values, one for heads next to each other."""
    places = {name: (i, j) for i, names in enumerate(slots) for j, name in enumerate(names)}
    found: list[Source] = []
    in_table = 0
    for head in group.heads:
        projection, slot = places.get(f"{head}.{part}", (None, in_table))
        in_table += projection is None
        last = found[-1] if found else None
        if last and last.projection == projection and last.start + last.heads == slot:
            found[-1] = replace(last, heads=last.heads + 1)
        else:
            found.append(Source(projection, slot, 1))
    return tuple(found)


def _projection(layer: SubLayer, readers: list[str]) -> tuple[Tensor, Tensor]:
    """Weight and bias of some queries, keys and values, with their LayerNorm folded in."""
    assert isinstance(layer, AttentionLayer)
    weight, bias = layer.folded()
    shape = (len(PARTS), layer.attention.heads, layer.attention.head_width)
    weight, bias = weight.unflatten(0, shape), bias.unflatten(0, shape)
    places = [(PARTS.index(node.part or ""), node.head_index) for node in map(node_named, readers)]
    rows = [(weight[place], bias[place]) for place in places]
    return torch.cat([row for row, _ in rows]), torch.cat([shift for _, shift in rows])


def _added(tables: list[ConstantTable]) -> ConstantTable | None:
    return sum(tables[1:], start=tables[0]) if tables else None


def _without_unused_sums(plan: Plan) -> Plan:
    used = set(plan.last_uses())

    def pruned(read: CopyPlan) -> CopyPlan:
        return read if read.sum in used else replace(read, sum=None)

    blocks = tuple(
        replace(
            block,
            projections=tuple(replace(p, read=pruned(p.read)) for p in block.projections),
            mlp=None if block.mlp is None else replace(block.mlp, read=pruned(block.mlp.read)),
        )
        for block in plan.blocks
    )
    return replace(plan, blocks=blocks, logits=pruned(plan.logits))
