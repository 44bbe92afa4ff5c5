"""A circuit's run that is kept up to date while edges are removed.

Readers are tried in reverse topological order, so everything upstream of the one being tried is as
it was at the start, and of what follows only its own unit and the surviving descendants change.
What the reader reads without an edge is a sum of what is left, made from prefix sums and never by
subtraction; what its descendants read moves by differences, and is summed afresh once rounding may
have piled up. Each trial equals a whole ablated run (`intervene.ablated_run.run_embedded`).

Several removals, one after the other, can be asked at once: their images lie behind one another on
the image axis (`moment` times `image`).

The reader that is being tried (`Root`) looks up what it reads without some of its writers: the sum
of the writers still to be tried comes from a table of prefix sums, and what is kept is added. Where
all of a head's reader is fresh, its products with its weights come from a table of their own, made
in the width of the heads that write.
"""

from collections.abc import Collection, Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from circuitvit.discover.acdc.engine.circuit_state import (
    KeptEdges,
    OpenedRead,
    Speedups,
    State,
    StreamRows,
    Trial,
    has_reader,
)
from circuitvit.discover.acdc.engine.low_rank import MOST_HEADS, Followers
from circuitvit.discover.acdc.engine.unit_forward import (
    Measured,
    Projected,
    readers_of_unit,
    squares,
)
from circuitvit.graph.edge_graph import Node, node_named
from circuitvit.intervene.run_plan import Rows, rows_read
from circuitvit.intervene.writer_outputs import Writes
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, SubLayer
from circuitvit.models.vit import ViT


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
        """The numbers that a removal makes: products where they are looked up, else a stream."""
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
        """The input without some consecutive writers, the last one's images first.

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


class IncrementalRun:
    """The incremental run of a circuit on some images; it computes what removals change.

    Units are opened from the last to the first; `begin` then takes one of the unit's readers,
    `try_removals` asks, `keep` and `commit` decide.

    Args:
        vit: the model.
        clean: the clean images.
        ablated: what ablated writers write.
        kept: the writers that each reader (q, k and v apart) reads; the caller's, who removes what
            is committed.
        opened: units that were tried before.
        speedups: what may be done to be fast.
    """

    def __init__(
        self,
        vit: ViT,
        clean: Float[Tensor, "image channel _height _width"],
        ablated: Writes,
        kept: KeptEdges,
        *,
        opened: Collection[str] = (),
        speedups: Speedups | None = None,
    ) -> None:
        speedups = speedups or Speedups()
        self.vit = vit
        self._kept = kept
        batched = speedups.batched
        self._batched = vit.positions.device.type != "cpu" if batched is None else batched
        self._state = State(vit, clean, ablated, kept, opened, speedups)
        self._units, self._places = self._state.units, self._state.places
        self._reads: dict[str, OpenedRead] = {}
        self._made: dict[str, dict[str, Tensor]] = {}
        self._open: dict[tuple[int, str], dict[Node, list[OpenedRead]]] = {}
        self._root: Root | None = None
        self._followers: Followers | None = None
        self._plan: list[list[tuple[Node, list[OpenedRead]]]] = []
        low_rank = speedups.low_rank
        low_rank = vit.positions.device.type == "cpu" if low_rank is None else low_rank
        self._low_rank = low_rank and speedups.folded
        self._start(set(opened))

    def _start(self, opened: set[str]) -> None:
        """Run the circuit; as plainly as the model, as long as every edge is kept."""
        stream: Tensor | None = self._state.writes["embed"]
        for layer in self._units.layers:
            stream = self._start_layer(layer, stream, opened)
        final = self._take(node_named("logits"), self._state.rows["logits"])
        self.logits = self._read_out(final.now.x)

    def _start_layer(
        self, layer: SubLayer, stream: Tensor | None, opened: set[str]
    ) -> Tensor | None:
        """Run the heads of a block, or its MLP; gives the stream after it while it is whole."""
        whole = opened.isdisjoint(layer.units) and all(map(self._keeps_all, layer.units))
        if stream is not None and whole:
            return self._run_whole(layer, stream)
        for name in layer.units:
            self._start_unit(name, opened)
        return None

    def _run_whole(self, layer: SubLayer, stream: Tensor) -> Tensor:
        """Run a sub-layer whose units read everything as the model does."""
        writes = self._state.writes
        if isinstance(layer, MlpLayer):
            value = layer.mlp(layer.norm(stream))
            writes[layer.name] = self._units.plain(value)
            stream = stream + value
        elif isinstance(layer, AttentionLayer):
            z = layer.mix(stream)
            writes |= {name: z[:, head] for head, name in enumerate(layer.units)}
            stream = stream + layer.attention.write(z, None)
        return layer.after(stream)

    def _take(self, reader: Node, rows: Rows) -> OpenedRead:
        kept = self._kept[reader.name]
        read = OpenedRead(reader, rows, kept, self._units.measured(self._state.read(reader, rows)))
        self._reads[reader.name] = read
        return read

    def _keeps_all(self, unit: str) -> bool:
        return all(map(self._state.keeps_all, readers_of_unit(node_named(unit))))

    def _start_unit(self, name: str, opened: set[str]) -> None:
        if name not in opened:
            node, state = node_named(name), self._state
            reads = {
                r.name: self._units.measured(state.read(r, "all")) for r in readers_of_unit(node)
            }
            made = self._units.run([node], reads, "all")
            state.writes[name] = made[name]["z" if node.kind == "head" else "value"]
        elif has_reader(self._kept, self._places[name]):
            self.open(name)

    def open(self, unit: str) -> None:
        """Take up a unit whose readers are to be tried next."""
        node, state = node_named(unit), self._state
        self._end_root()
        if self._followers is not None:
            self._followers.catch_up()
            self._followers = None
        if node.kind != "logits":
            rows = state.find_rows(unit)
            taken = [self._take(r, rows_read(r, rows)) for r in readers_of_unit(node)]
            reads = {read.name: read.now for read in taken}
            self._made[unit] = made = self._units.run([node], reads, rows)[unit]
            state.writes[unit] = made["value" if node.kind == "mlp" else "z"]
            state.opened.add(unit)
            self._open.setdefault((node.block_index, node.kind), {})[node] = taken
            self._plan_from(node)

    def _plan_from(self, unit: Node) -> None:
        """Find the readers that change when a unit does, and those that follow heads alone."""
        moving, following = (
            {self._places[unit.name]},
            dict[str, tuple[OpenedRead, tuple[int, ...]]](),
        )
        self._plan = []
        later = [(block, kind) for block in range(unit.block_index, self.vit.config.depth)
                 for kind in ("head", "mlp")]  # fmt: skip
        for key in later[1 if unit.kind == "head" else 2 :]:
            changing = []
            for node, taken in self._open.get(key, {}).items():
                hit = [read for read in taken if not moving.isdisjoint(read.kept)]
                changing += [(node, hit)] if hit else []
                for read in hit:
                    places = tuple(sorted(moving.intersection(read.kept)))
                    if self._low_rank and self._all_heads(places):
                        following[read.name] = read, places
            moving |= {self._places[node.name] for node, _ in changing}
            self._plan += [changing] if changing else []
        self._followers = Followers(self._state, following) if following else None

    def _all_heads(self, places: tuple[int, ...]) -> bool:
        names = [self._state.names[place] for place in places]
        return len(names) <= MOST_HEADS and all(name.startswith("a") for name in names)

    def begin(self, readers: Sequence[str], order: Sequence[int]) -> None:
        """Take up a reader (or q, k and v of a head together) of the unit that was opened last.

        Args:
            readers: names; all of them read alike.
            order: the writers to be tried, first to last; others that it keeps stay kept.
        """
        self._end_root()
        state, nodes = self._state, tuple(node_named(name) for name in readers)
        rows: Rows = state.rows["logits"]
        if nodes[0].kind != "logits":
            needs: list[Rows] = [rows_read(node, state.rows[node.unit]) for node in nodes]
            rows = needs[0] if "all" not in needs else "all"
        self._root = Root(state, nodes, rows, order, low_rank=self._low_rank)

    def _end_root(self) -> None:
        """Make the edges that the tried reader keeps its input from now on."""
        root, self._root = self._root, None
        if root is not None:
            for node in root.readers:
                read = self._reads[node.name]
                x = self._state.narrow(root.rest, root.rows, read.rows)
                read.move(self._units.measured(x), fresh=True)

    def numbers_read(self) -> int:
        """The size of one removal's input to the tried reader, in numbers."""
        assert self._root is not None
        return self._root.numbers()

    def try_removals(self, first: int, moments: int, keeps: Collection[int] = ()) -> Trial:
        """Compute the effect of removing some consecutive writers, one after the other.

        Args:
            first: index in the order of the first writer to be removed.
            moments: how many are tried, each with all before it removed too.
            keeps: those of them that the ones after take for kept.
        """
        root = self._root
        assert root is not None
        read = root.without(first, moments, keeps)
        if root.readers[0].kind == "logits":
            assert isinstance(read, Tensor)
            return Trial(moments, self._logits(read, moments))
        trial = Trial(moments, self.logits.expand(moments, -1, -1))
        state, unit = self._state, node_named(root.readers[0].unit)
        reads: dict[str, Measured | Projected] = {}
        for node in root.readers:
            if isinstance(read, Projected):
                reads[node.name] = read
            else:
                x = state.narrow(read, root.rows, rows_read(node, state.rows[unit.name]))
                reads[node.name] = self._units.measured(x)
        self._update([unit], reads, trial)
        trial.reads.clear()
        self._follow(trial)
        return trial

    def _logits(self, x: StreamRows, moments: int) -> Float[Tensor, "moment _image class"]:
        return self._read_out(x).unflatten(0, (moments, -1)).flip(0)

    def _read_out(self, x: StreamRows) -> Float[Tensor, "image class"]:
        if self._state.rows["logits"] == "all":
            return self.vit.read_out(x)
        return self.vit.head(self.vit.final_norm(x[:, 0]))

    def _follow(self, trial: Trial) -> None:
        """Run the opened units after one that changed, as far as they change too."""
        for changing in self._plan:
            for nodes, reads in self._together(changing, trial):
                self._update(nodes, reads, trial)
        final = self._changed([self._reads["logits"]], trial)
        if final:
            read = final["logits"]
            assert isinstance(read, Measured)
            trial.logits = self._logits(read.x, trial.moments)
            trial.reads["logits"] = read

    def _together(
        self, changing: list[tuple[Node, list[OpenedRead]]], trial: Trial
    ) -> Iterable[tuple[list[Node], dict[str, Measured | Projected]]]:
        """Units that read something new, those heads together that can be run together."""
        if not self._batched or changing[0][0].kind == "mlp":
            for node, taken in changing:
                reads = self._changed(taken, trial)
                if reads:
                    yield [node], reads
            return
        groups: dict[tuple, tuple[list[Node], dict[str, Measured | Projected]]] = {}
        for node, taken in changing:
            reads = self._changed(taken, trial)
            if reads:
                parts = tuple((name[-1], isinstance(x, Measured)) for name, x in reads.items())
                nodes, together = groups.setdefault((self._state.rows[node.name], parts), ([], {}))
                nodes.append(node)
                together |= reads
        yield from groups.values()

    def _changed(
        self, taken: Iterable[OpenedRead], trial: Trial
    ) -> dict[str, Measured | Projected]:
        """The new inputs of readers that keep an edge from something that moved."""
        reads: dict[str, Measured | Projected] = {}
        for read in taken:
            if self._followers is not None and read.name in self._followers:
                followed = self._followers.read(read.name, trial)
                reads |= {} if followed is None else {read.name: followed}
                continue
            x, new = read.now.x, None
            for place in trial.shifts.keys() & read.kept:
                move = self._moved(place, read.rows, trial).view(trial.moments, *x.shape)
                new = move + x if new is None else new.add_(move)
            if new is not None:
                reads[read.name] = self._measured(read, new.flatten(0, 1), trial)
        return reads

    def _measured(self, read: OpenedRead, x: StreamRows, trial: Trial) -> Measured:
        """A reader's input in a trial; summed afresh if so little is left that rounding matters."""
        measured = self._units.measured(x)
        lengths = measured.squares.view(trial.moments, *read.least.shape)
        if not bool((lengths < read.least).any()):
            return measured
        trial.fresh.add(read.name)
        return self._units.measured(self._state.read_anew(read.reader, read.rows, trial))

    def _moved(self, place: int, needs: Rows, trial: Trial) -> Tensor:
        """The change of a write in the stream, at some rows."""
        state, name = self._state, self._state.names[place]
        if place not in trial.moved:
            trial.moved[place] = self._units.in_stream(node_named(name), trial.shifts[place])
        return state.narrow(trial.moved[place], state.rows[name], needs)

    def _update(
        self, nodes: list[Node], reads: dict[str, Measured | Projected], trial: Trial
    ) -> None:
        """Run units on what they read anew, and note how their writes move."""
        state, rows = self._state, self._state.rows[nodes[0].name]
        made = self._units.run(nodes, reads, rows, trial.moments, self._made)
        followed = self._followers or ()
        trial.reads |= {
            name: x for name, x in reads.items() if isinstance(x, Measured) and name not in followed
        }
        trial.made |= made
        for node in nodes:
            new, old = (
                made[node.name]["z" if node.kind == "head" else "value"],
                state.writes[node.name],
            )
            trial.writes[self._places[node.name]] = new
            shift = (new.view(trial.moments, *old.shape) - old).flatten(0, 1)
            trial.shifts[self._places[node.name]] = shift

    def keep(self, place: int) -> None:
        """Decide that the reader being tried keeps a writer."""
        root = self._root
        assert root is not None
        root.keep(place)

    def commit(self, trial: Trial, index: int) -> None:
        """Let what was tried be so: the removal of this index, and those before it."""
        state, back = self._state, trial.moments - 1 - index

        def its(x: Tensor) -> Tensor:
            return x if trial.moments == 1 else x.unflatten(0, (trial.moments, -1))[back].clone()

        self.logits = trial.logits[index]
        for unit, made in trial.made.items():
            self._made[unit] |= {name: its(x) for name, x in made.items()}
            state.writes[unit] = self._made[unit]["value" if "value" in made else "z"]
        for name, read in trial.reads.items():
            now = Measured(its(read.x), its(read.squares))
            self._reads[name].move(now, fresh=name in trial.fresh)
