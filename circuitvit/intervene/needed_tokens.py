"""Which tokens of what a unit writes are needed at all.

`logits` may look at the class token only, or, where pooling comes before the final LayerNorm, at
the mean of some tokens. So a unit that nobody but `logits` reads has to be run there only; and so
has an MLP, or a head's query, that only such units read. Keys and values are needed everywhere.
"""

from collections.abc import Iterable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from circuitvit.config import ViTConfig
from circuitvit.graph.edge_graph import Node

Rows = Literal["all", "class", "mean"]


def rows_of_logits(config: ViTConfig, *, pooled: bool) -> Rows:
    """What `logits` needs of its copy of the stream."""
    if pooled and config.pooling == "class":
        return "class"
    if pooled and config.fc_norm:
        return "mean"
    return "all"


def rows_read(reader: Node, written: Rows) -> Rows:
    """What a reader needs, when `written` is needed of what its unit writes.

    The mean of what an MLP writes needs all that it reads, and so do keys and values; a query is
    needed at the tokens at which its head writes.
    """
    if written == "mean" and reader.kind != "logits":
        return "all"
    return "all" if reader.part in ("k", "v") else written


def rows_together(needs: Iterable[Rows]) -> Rows:
    """What several readers of one writer need."""
    different = set(needs)
    return different.pop() if len(different) == 1 else "all"


def narrowed(
    x: Float[Tensor, "*any token width"], has: Rows, needs: Rows, pools_from: int
) -> Float[Tensor, "*any row width"]:
    """The rows that are needed, of a tensor that has `has`; the mean is one row."""
    if has == needs:
        return x
    assert has == "all"
    if needs == "class":
        return x[..., :1, :]
    return x[..., pools_from:, :].mean(dim=-2, keepdim=True)
