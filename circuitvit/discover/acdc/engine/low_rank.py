"""Readers that read a few heads, and nothing else that changes with the unit being tried.

While the readers of a unit are tried, all that such a reader's input can do is to move along the
W_O of those heads: x = x₀ + ζ W_O, where ζ is how far their z have come. So its products with the
reader's weights and its length follow from ζ, in the width of the heads, and x itself is brought up
to date once, when the unit is done with. The length is a sum that may cancel; where its square has
shrunk to a hundredth, x is summed after all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitvit.discover.acdc.engine.circuit_state import OpenedRead, State, Trial
from circuitvit.discover.acdc.engine.unit_forward import Measured, Projected
from circuitvit.graph.edge_graph import node_named
from circuitvit.intervene.run_plan import Rows

LEAST = 0.01
"""The share of its squared length that a stream may shrink to before it is made in full."""
MOST_HEADS = 4
"""With more heads than that a reader's input is made in full."""


@dataclass(frozen=True)
class _Start:
    """A follower's input when the unit was opened.

    Attributes:
        products: with the reader's weights, and twice with the heads' W_O, [image row out].
        squares: its squared length, [image row 1].
        least: the same where it is too small to be trusted.
        weights: the heads' W_O, one below the other, into the reader's weights and into itself,
            [head_widths out].
        own: the width of the reader's own products.
    """

    products: Tensor
    squares: Tensor
    least: Tensor
    weights: Tensor
    own: int


class Followers:
    """The readers that follow a few heads alone, while the readers of one unit are tried.

    Args:
        state: the circuit's run, LayerNorms folded.
        reads: those readers, and the heads (by writer's index) that each follows.
    """

    def __init__(
        self, state: State, reads: Mapping[str, tuple[OpenedRead, tuple[int, ...]]]
    ) -> None:
        self._state, self._reads = state, reads
        followed = {place for _, places in reads.values() for place in places}
        self._z = {place: state.writes[state.names[place]] for place in followed}
        self._starts: dict[str, _Start] = {}
        self._trial: Trial | None = None
        self._zetas: dict[tuple[int, Rows], Tensor] = {}

    def __contains__(self, reader: object) -> bool:
        return reader in self._reads

    def read(self, name: str, trial: Trial) -> Measured | Projected | None:
        """A follower's input in a trial, times its weights; summed afresh if it is tiny.

        None if nothing that it reads has changed in this trial.
        """
        read, places = self._reads[name]
        if trial.shifts.keys().isdisjoint(places):
            return None
        if name not in self._starts:
            self._starts[name] = self._start(read, places)
        if self._trial is not trial:
            self._trial, self._zetas = trial, {}
        start = self._starts[name]
        zetas = [self._zeta(place, trial, read.rows) for place in places]
        zeta = zetas[0] if len(zetas) == 1 else torch.cat(zetas, dim=-1)
        products = start.products
        if trial.moments > 1:
            products = products.repeat(trial.moments, 1, 1)
        moved = torch.addmm(products.flatten(0, 1), zeta.flatten(0, 1), start.weights)
        own, along = moved.view(*zeta.shape[:2], -1).tensor_split([start.own], dim=-1)
        gained = (zeta * along).sum(dim=-1, keepdim=True)
        squared = gained.view(trial.moments, *start.squares.shape) + start.squares
        if bool((squared < start.least).any()):
            x = self._state.read_anew(read.reader, read.rows, trial)
            return self._state.units.measured(x)
        return Projected(own, squared.flatten(0, 1))

    def _zeta(self, place: int, trial: Trial, needs: Rows) -> Tensor:
        """The change of a head's z since the unit was opened, at some rows."""
        if (place, needs) not in self._zetas:
            name, was, shift = self._state.names[place], self._z[place], trial.shifts.get(place)
            now = self._state.writes[name]
            if now is not was or shift is None:
                come = now - was
                come = come.expand(trial.moments, *come.shape)
                shift = come if shift is None else shift.view(come.shape) + come
                shift = shift.flatten(0, 1)
            self._zetas[place, needs] = self._state.narrow(shift, self._state.rows[name], needs)
        return self._zetas[place, needs]

    def _start(self, read: OpenedRead, places: tuple[int, ...]) -> _Start:
        node, units = read.reader, self._state.units
        if node.kind == "mlp":
            weight = units.neurons_of(node.block_index).first
        else:
            heads = units.heads_of(node.block_index)
            weight = heads.of_part(node.part or "")[node.head_index]
        out, now = torch.cat([self._out(place) for place in places]), read.now
        products = (now.x @ torch.cat([weight, 2 * out]).T).contiguous()
        weights = torch.cat([out @ weight.T, out @ out.T], dim=1)
        least = torch.maximum(LEAST * now.squares, read.least)
        return _Start(products, now.squares, least, weights, len(weight))

    def _out(self, place: int) -> Tensor:
        node = node_named(self._state.names[place])
        return self._state.units.heads_of(node.block_index).out[node.head_index]

    def catch_up(self) -> None:
        """Bring the followers' own copies of the stream up to date."""
        state, moved = self._state, dict[int, Tensor]()
        for place, was in self._z.items():
            now = state.writes[state.names[place]]
            if now is not was:
                moved[place] = (now - was) @ self._out(place)
        for read, places in self._reads.values():
            x, late = read.now.x, moved.keys() & set(places)
            for place in late:
                x = x + state.narrow(moved[place], state.rows[state.names[place]], read.rows)
            if late:
                now = state.units.measured(x)
                fresh = bool((now.squares < read.least).any())
                if fresh:
                    now = state.units.measured(state.read(read.reader, read.rows))
                read.move(now, fresh=fresh)
