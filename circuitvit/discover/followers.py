"""Readers that read one head, and nothing else that changes with it.

While the readers of that head are tried, all that such a reader's input can do is to move along the
head's W_O: x = x₀ + ζ W_O, where ζ is how far the head's z has come. So its products with the
reader's weights and its length follow from ζ in the width of the head, and x itself is brought up
to date once, when the head is done with. The length is a sum of squares that may cancel; where it
has shrunk to a tenth, x is made after all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitvit.discover.folding import Projected, squares
from circuitvit.discover.state import State, Units
from circuitvit.discover.trial import Read, Trial
from circuitvit.edge_graph import Node

LEAST = 0.01
"""The share of its squared length that a stream may shrink to before it is made in full."""


@dataclass(frozen=True)
class _Start:
    """What a follower's input was when the head was opened.

    Attributes:
        products: with the reader's weights, and twice with the head's W_O, [image row out].
        squares: its squared length, [image row 1].
        weights: the head's W_O into the reader's weights, and into itself, [head_width out].
        out: the width of the reader's own products.
    """

    products: Tensor
    squares: Tensor
    weights: Tensor
    out: int


class Followers:
    """The readers that follow one head alone, while its readers are tried.

    Args:
        units: the model's weights, folded.
        state: the circuit's run.
        head: the head.
        reads: those readers.
    """

    def __init__(self, units: Units, state: State, head: Node, reads: Iterable[Read]) -> None:
        assert head.head is not None
        self._units, self._state, self._head = units, state, head
        self._reads = {read.name: read for read in reads}
        self._out = units.heads_of(head.block).out[head.head]
        self._place = state.places[head.name]
        self._z = state.writes[head.name]
        self._starts: dict[str, _Start] = {}

    def __contains__(self, reader: object) -> bool:
        return reader in self._reads

    def read(self, name: str, trial: Trial) -> Tensor | Projected:
        """What a follower reads in a trial, multiplied by its weights; or as it is, if tiny."""
        read = self._reads[name]
        if name not in self._starts:
            self._starts[name] = self._start(read)
        start = self._starts[name]
        zeta = self._zeta(trial.shifts[self._place], trial.moments, read)
        products = start.products
        if trial.moments > 1:
            products = products.repeat(trial.moments, 1, 1)
        moved = torch.addmm(products.flatten(0, 1), zeta.flatten(0, 1), start.weights)
        own, along = moved.view(*zeta.shape[:2], -1).split([start.out, self._out.shape[0]], dim=-1)
        gained = (zeta * along).sum(dim=-1, keepdim=True)
        squared = gained.view(trial.moments, *start.squares.shape) + start.squares
        if bool((squared < LEAST * start.squares).any()):
            return ((zeta @ self._out).view(trial.moments, *read.x.shape) + read.x).flatten(0, 1)
        return Projected(own, squared.flatten(0, 1))

    def _zeta(self, shift: Tensor, moments: int, read: Read) -> Tensor:
        """How far z has come since the head was opened, at the rows that a reader needs."""
        now = self._state.writes[self._head.name]
        if now is not self._z:
            shift = (shift.view(moments, *now.shape) + (now - self._z)).flatten(0, 1)
        return self._state.narrow(shift, self._state.rows[self._head.name], read.rows)

    def _start(self, read: Read) -> _Start:
        node = read.reader
        if node.kind == "mlp":
            neurons = self._units.neurons[node.block or 0]
            assert neurons is not None
            weight = neurons.first
        else:
            assert node.head is not None
            weight = self._units.heads_of(node.block).of_part(node.part)[node.head]
        both = torch.cat([weight, 2 * self._out])
        products = (read.x @ both.T).contiguous()
        weights = torch.cat([self._out @ weight.T, self._out @ self._out.T], dim=1)
        return _Start(products, squares(read.x), weights, len(weight))

    def caught_up(self, writes: Mapping[str, Tensor]) -> list[Read]:
        """Bring the followers' own copies of the stream up to date, and name those that moved."""
        now = writes[self._head.name]
        if now is self._z:
            return []
        moved = (now - self._z) @ self._out
        for read in self._reads.values():
            read.x = read.x + self._state.narrow(
                moved, self._state.rows[self._head.name], read.rows
            )
        return list(self._reads.values())
