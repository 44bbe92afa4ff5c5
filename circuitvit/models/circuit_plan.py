"""The plan of a compiled circuit, step by step, and its summary in words. Imports no torch.

Values are numbered in the order in which they come to be: what `embed` writes is 0, then what heads
and MLPs write, and sums of them that are needed more than once. Rows say how a tensor goes over the
tokens: one a token, or 1, the same at every token (or the first token, where no other is needed);
a table of 0 rows is not there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from circuitvit.config import MOST, ViTConfig
from circuitvit.errors import CircuitError, in_short, printable
from circuitvit.files import plain_json
from circuitvit.files.restoring import UnfitError, restored

QkvPart = Literal["q", "k", "v"]
EMBED = 0
"""The value that `embed` writes."""


@dataclass(frozen=True)
class CopyPlan:
    """A copy of the stream: some values added up, and a table of all that is constant.

    Attributes:
        values: what is added.
        table: which of the plan's tables, if any.
        rows: of the copy.
        first: whether the first token alone is read.
        sum: the number under which the sum, without its table, is kept for others; or None.
    """

    values: tuple[int, ...]
    table: int | None
    rows: int
    OPTIONAL: ClassVar = frozenset({"first", "sum"})

    first: bool = False
    sum: int | None = None


@dataclass(frozen=True)
class Projection:
    """A read, its LayerNorm, and one product for all queries, keys and values that read it.

    Attributes:
        read: what is read.
        slots: how many, each of the head width.
    """

    read: CopyPlan
    slots: int


@dataclass(frozen=True)
class Source:
    """The source of queries, keys or values of some consecutive heads.

    Attributes:
        projection: which of the block's; None is the call's own table.
        start: the first slot, or the first head of the table.
        heads: how many.
    """

    projection: int | None
    start: int
    heads: int


@dataclass(frozen=True)
class Call:
    """Heads of a block that attend in one product.

    Attributes:
        heads: their indices in the model that was compiled.
        pattern: rows of the table of patterns, if these are constant; else 0.
        q: where the queries come from; empty if the pattern is a table.
        k: likewise the keys.
        v: likewise the values.
        tables: rows of the tables of queries, keys and values.
        rows: of what the heads make; 1 where the first token alone attends, or all do alike.
    """

    heads: tuple[int, ...]
    pattern: int
    q: tuple[Source, ...]
    k: tuple[Source, ...]
    v: tuple[Source, ...]
    tables: tuple[int, int, int]
    rows: int

    def sources(self, part: QkvPart) -> tuple[Source, ...]:
        """The sources of the queries, keys or values."""
        return {"q": self.q, "k": self.k, "v": self.v}[part]

    def in_table(self, part: QkvPart) -> int:
        """The number of heads that take them from the table."""
        return sum(s.heads for s in self.sources(part) if s.projection is None)


@dataclass(frozen=True)
class HeadWrites:
    """The common write of some consecutive heads of a call, by one product with their W_O.

    Attributes:
        call: which call.
        start: its first head of them.
        heads: how many.
        value: the number of what they write.
        table: rows of the table that is added.
    """

    call: int
    start: int
    heads: int
    value: int
    table: int


@dataclass(frozen=True)
class MLPPlan:
    """An MLP.

    Attributes:
        read: what it reads.
        neurons: its width.
        value: the number of what it writes.
        table: rows of the table that is added, its bias included; at least 1.
    """

    read: CopyPlan
    neurons: int
    value: int
    table: int


@dataclass(frozen=True)
class BlockPlan:
    """One block; all of it may be absent.

    Attributes:
        head_width: of its heads.
        projections: from the stream to queries, keys and values.
        calls: the attention products.
        writes: back into the stream.
        mlp: the MLP, if there is one.
        constant: units of this block whose constant output was folded into tables.
    """

    head_width: int
    projections: tuple[Projection, ...]
    calls: tuple[Call, ...]
    writes: tuple[HeadWrites, ...]
    mlp: MLPPlan | None
    constant: tuple[str, ...] = ()

    def reads(self) -> Iterator[CopyPlan]:
        """All that is read, in the order of the run."""
        yield from (projection.read for projection in self.projections)
        if self.mlp is not None:
            yield self.mlp.read


@dataclass(frozen=True)
class Plan:
    """The whole run.

    Attributes:
        blocks: one a block of the model that was compiled.
        logits: what is read out.
        tables: rows of the tables that are read, each by one reader or more.
    """

    blocks: tuple[BlockPlan, ...]
    logits: CopyPlan
    tables: tuple[int, ...]

    def last_uses(self) -> dict[int, int]:
        """By value, the last block that reads it; `len(blocks)` is the read-out."""
        uses: dict[int, int] = {}
        for index, block in enumerate(self.blocks):
            uses |= {value: index for read in block.reads() for value in read.values}
        return uses | dict.fromkeys(self.logits.values, len(self.blocks))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Plan":
        """Make a plan from what `as_dict` gave.

        Raises:
            CircuitError: it is not one.
        """
        surplus = list[str]()
        try:
            _check_sizes(values)
            told = restored(_Plan, plain_json(values), surplus=surplus)
            if surplus:
                raise UnfitError(f"{', '.join(map(printable, surplus[:5]))} are not known")
            plan = cls(told.blocks, told.logits, told.tables)
            _check_numbers(plan)
            return plan
        except (LookupError, TypeError, ValueError) as cause:
            raise CircuitError(
                f"this is not the plan of a compiled circuit ({in_short(cause)}): it was damaged, "
                "or belongs to a newer version. Compile and save the circuit again."
            ) from cause


@dataclass(frozen=True)
class _Plan:
    """The fields of a plan, as a file has them."""

    blocks: tuple[BlockPlan, ...]
    logits: CopyPlan
    tables: tuple[int, ...]


def _check_sizes(values: Any) -> None:
    """Refuse numbers that no plan has.

    Raises:
        ValueError: a number is negative or too large.
    """
    left = [values]
    while left:
        item = left.pop()
        if isinstance(item, int | float) and not 0 <= item <= MOST:
            raise ValueError(f"{in_short(item, most=60)} is not in 0 to {MOST:,}")
        if isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item


def _check_numbers(plan: Plan) -> None:
    """Refuse a plan that reads what is not there.

    Raises:
        ValueError: a value is read before it is made, or a table or projection does not exist.
    """
    made = {EMBED}

    def check(read: CopyPlan) -> None:
        if not made.issuperset(read.values) or not read.rows >= 1:
            raise ValueError(f"values {read.values} are read before they are made")
        if read.table is not None:
            plan.tables[read.table]
        made.update(() if read.sum is None else (read.sum,))

    for block in plan.blocks:
        for projection in block.projections:
            check(projection.read)
        _check_sources(block)
        made.update(write.value for write in block.writes)
        if block.mlp is not None:
            check(block.mlp.read)
            made.add(block.mlp.value)
    check(plan.logits)


def _check_sources(block: BlockPlan) -> None:
    for source in (s for call in block.calls for s in (*call.q, *call.k, *call.v)):
        if source.projection is not None:
            slots = block.projections[source.projection].slots
            if source.start + source.heads > slots:
                raise ValueError(f"slots beyond the {slots} of a projection are used")


def block_macs(config: ViTConfig, block: BlockPlan) -> int:
    """Multiply-accumulates of a block for one image."""
    width, inner, total = config.width, block.head_width, 0
    for projection in block.projections:
        total += projection.read.rows * width * projection.slots * inner
    for call in block.calls:
        products = 1 if call.pattern else 2
        total += products * call.rows * config.tokens * len(call.heads) * inner
    for write in block.writes:
        total += block.calls[write.call].rows * width * write.heads * inner
    if block.mlp is not None:
        total += 2 * block.mlp.read.rows * width * block.mlp.neurons
    return total


PARTS: dict[QkvPart, str] = {"q": "queries", "k": "keys", "v": "values"}


def explanation(config: ViTConfig, plan: Plan) -> str:
    """The removed, folded, static and shared parts, block by block, with the MACs of each.

    Args:
        config: of the ViT that was compiled.
        plan: of the compiled model.
    """
    before = [_dense_macs(config, block) for block in range(config.depth)]
    after = [block_macs(config, block) for block in plan.blocks]
    heads = sum(len(call.heads) for block in plan.blocks for call in block.calls)
    mlps = sum(block.mlp is not None for block in plan.blocks)
    lines = [
        f"{heads} of {sum(config.heads)} heads and {mlps} of {sum(map(bool, config.mlp_width))} "
        f"MLPs are run; MACs of the blocks {_change(sum(before), sum(after))}."
    ]
    for index, block in enumerate(plan.blocks):
        lines.append(f"block {index}: MACs {_change(before[index], after[index])}")
        lines += [f"  {line}" for line in _block_lines(config, index, block)]
    reads = [read for block in plan.blocks for read in block.reads()]
    added = sum(max(0, len(read.values) - 1) for read in [*reads, plan.logits])
    lines.append(f"logits: {_parts(len(plan.logits.values))}")
    lines.append(
        f"{len(reads)} copies of the stream, each with a LayerNorm (the model had "
        f"{sum(map(bool, config.heads)) + sum(map(bool, config.mlp_width))}), are made by {added} "
        f"additions and {len(plan.tables)} tables of {sum(plan.tables) * config.width:,} numbers. "
        "MACs don't count these: measure the latency."
    )
    return "\n".join(lines)


def _change(before: int, after: int) -> str:
    saved = f" ({after / before - 1:+z.0%})" if before else ""
    return f"{before / 1e6:z.4g} M -> {after / 1e6:z.4g} M{saved}"


def _block_lines(config: ViTConfig, index: int, block: BlockPlan) -> Iterator[str]:
    run = {head for call in block.calls for head in call.heads}
    folded = {n.split(".h")[1] for n in block.constant if n.startswith("a")}
    gone = [h for h in range(config.heads[index]) if h not in run and str(h) not in folded]
    if run:
        yield f"run: heads {_listed(run)}" + _readers_of(block)
    if gone:
        yield f"removed: heads {_listed(gone)}"
    if folded:
        yield f"constant, folded into tables: heads {_listed(map(int, folded))}"
    for call in block.calls:
        yield from _call_lines(config, call)
    if len(block.writes) < len(run):
        products = "one product" if len(block.writes) == 1 else f"{len(block.writes)} products"
        yield f"shared: {len(run)} heads write in {products}"
    yield from _mlp_lines(config, index, block)


def _readers_of(block: BlockPlan) -> str:
    slots, copies = sum(p.slots for p in block.projections), len(block.projections)
    word = "copy" if copies == 1 else "copies"
    return f"; {slots} queries, keys and values share {copies} {word} of the stream"


def _call_lines(config: ViTConfig, call: Call) -> Iterator[str]:
    heads = _listed(call.heads)
    if call.pattern:
        kind = "a row each" if call.pattern == 1 else "a table each"
        yield f"static: the patterns of heads {heads} are {kind}, without queries and keys"
    for part, word in PARTS.items():
        if call.in_table(part):
            yield f"static: the {word} of {call.in_table(part)} of heads {heads}"
    if call.rows == 1 and config.tokens > 1:
        yield f"one row: heads {heads} attend at the first token alone, or alike at all"


def _mlp_lines(config: ViTConfig, index: int, block: BlockPlan) -> Iterator[str]:
    if block.mlp is not None:
        only = ", at the first token alone" if block.mlp.read.first else ""
        yield f"run: the MLP, which reads {_parts(len(block.mlp.read.values))}{only}"
    elif f"m{index}" in block.constant:
        yield "constant, folded into tables: the MLP"
    elif config.mlp_width[index]:
        yield "removed: the MLP"


def _parts(count: int) -> str:
    return f"a sum of {count}" if count > 1 else ("one value" if count else "a table alone")


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _dense_macs(config: ViTConfig, block: int) -> int:
    """Multiply-accumulates of a block of the model that was compiled."""
    tokens, width = config.tokens, config.width
    inner = config.heads[block] * config.head_width[block]
    attention = 4 * tokens * width * inner + 2 * tokens * tokens * inner
    return attention + 2 * tokens * width * config.mlp_width[block]
