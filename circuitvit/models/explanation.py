"""What a compiled circuit's plan says of each block, in words."""

from collections.abc import Iterable, Iterator

from circuitvit.config import ViTConfig
from circuitvit.models.circuit_plan import BlockPlan, Call, Part, Plan, block_macs

PARTS: dict[Part, str] = {"q": "queries", "k": "keys", "v": "values"}


def explanation(config: ViTConfig, plan: Plan) -> str:
    """What was removed, folded, made static and shared, block by block, and the MACs of each.

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
