"""The reader that is being tried, and what it reads without some of its writers.

What is left of the writers still to be tried is looked up in a table of sums, and what is kept for
good is added. Where all of a head's reader is fresh, its products with its weights come from a
table of their own, made in the width of the heads that write.
"""

from collections.abc import Collection, Sequence

from torch import Tensor

from circuitvit.discover.acdc.engine.circuit_state import State
from circuitvit.discover.acdc.engine.folded_weights import Projected, squares
from circuitvit.graph.edge_graph import Node
from circuitvit.intervene.needed_tokens import Rows


class Root:
    """The reader (or q, k and v of a head together) that is being tried.

    Args:
        state: the circuit's run.
        readers: its names' nodes; all of them read alike.
        rows: of what they read that are needed.
        order: the writers to be tried, first to last; others that it keeps stay kept.
        low_rank: whether products may come from a table.
    """

    def __init__(
        self,
        state: State,
        readers: Sequence[Node],
        rows: Rows,
        order: Sequence[int],
        *,
        low_rank: bool,
    ) -> None:
        self._state, self._order = state, tuple(order)
        self.readers = tuple(readers)
        self.rows: Rows = rows
        first, tail = readers[0], tuple(reversed(order))
        self._fresh = tail == tuple(range(len(tail)))
        if self._fresh:
            sums = state.narrow(state.prefixes()[: len(tail) + 1], "all", rows)
            self._sums = sums if rows == "all" else sums.contiguous()
        else:
            self._sums = state.sums(tail, rows)
        rest = state.base(first, rows).double().expand_as(state.embedded(rows)).clone()
        settled = [place for place in state.kept[first.name] if place not in set(order)]
        for place in settled:
            rest += state.difference(place, rows)
        self.rest = rest.to(self._sums.dtype)
        self._products: Tensor | None = None
        self._lengths: Tensor | None = None
        if low_rank and self._fresh and rows == "all" and len(readers) == 1 and first.part:
            weight = state.units.heads_of(first.block_index).of_part(first.part)[first.head_index]
            self._weight = weight
            self._products = state.products(len(tail), weight)
            self._products += self.rest @ weight.T
            self._lengths = None if settled else state.lengths(first)

    def numbers(self) -> int:
        """How many numbers a removal makes: products where they are looked up, else a stream."""
        unit = self.readers[0].unit
        if self._products is None or self._lengths is None or self._state.rows[unit] == "all":
            return self.rest.numel()
        return self._products[0].numel()

    def keep(self, place: int) -> None:
        """Decide that a writer stays."""
        difference = self._state.difference(place, self.rows)
        self.rest += difference
        if self._products is not None:
            self._products += difference @ self._weight.T
            self._lengths = None

    def without(self, first: int, moments: int, keeps: Collection[int]) -> Tensor | Projected:
        """What is read without some writers in a row, the last one's images first.

        Args:
            first: index in the order of the first writer that goes.
            moments: how many go, one after the other.
            keeps: those of them that stay for the ones after.
        """
        end = len(self._order) - first
        products, lengths = self._products, self._lengths
        if products is not None and lengths is not None and not keeps:
            there = slice(end - moments, end)
            return Projected(products[there].flatten(0, 1), lengths[there].flatten(0, 1))
        x = self._sums[end - moments : end] + self.rest
        for place in keeps:
            later = self._order.index(place) + 1 - first
            x[: moments - later] += self._state.difference(place, self.rows)
        x = x.flatten(0, 1)
        if products is None or keeps:
            return x
        return Projected(products[end - moments : end].flatten(0, 1), squares(x))
