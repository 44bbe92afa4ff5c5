"""Circuits of one model run on the same images, what they have in common computed once.

Each run is the ablated run of `ablated_run.run_embedded`, the plain form of the same sums.
What is read is put together in the cheapest of three ways:

- as the model does: from what an earlier sub-layer read, by adding what was written since. Most
  circuits that keep nearly everything read so.
- from what another reader of the sub-layer reads, which keeps a few writers more or fewer. Where
  hardly anything is left of that, rounding would matter, and the sum is made afresh.
- from the sum of all ablated values, by adding a − ã of the writers that are kept.

Heads of a block that read the same share their LayerNorm and their projection.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitvit.graph.edge_graph import edges_of, node_named, writers_of
from circuitvit.images import Pairs
from circuitvit.intervene.batching import images_in_chunk, images_that_fit, in_batches
from circuitvit.intervene.run_plan import PlannedWrite, Rows, RunPlan, narrowed
from circuitvit.intervene.task import PatchingTask
from circuitvit.intervene.writer_outputs import Writes
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, attention_layer, sublayers
from circuitvit.models.vit import PARTS, Attention, ViT

FEW = 4
"""Up to so many writers are added one by one; more in one product for all readers."""
LEAST = 0.01
"""The share of its squared length that a stream may shrink to by differences."""
NUMBERS_HELD = 2**27
"""How many numbers may be held from one circuit for those after it."""


RunStream = Float[Tensor, "image _row width"]


class Runs:
    """Some circuits, run on one chunk of images.

    Args:
        vit: the model.
        plan: of the circuits.
        clean: the images.
        ablated: what ablated writers write.
    """

    def __init__(
        self,
        vit: ViT,
        plan: RunPlan,
        clean: Float[Tensor, "image channel _height _width"],
        ablated: Writes,
    ) -> None:
        self._vit, self._plan = vit, plan
        self._layers = sublayers(vit)
        self._nodes = [node_named(name) for name in writers_of(vit.config)]
        self._images = len(clean)
        self._ablated = ablated
        self._writes = {0: vit.embed(clean)}  # of heads, z
        self._reads: dict[int, RunStream] = {}
        self._differences: dict[tuple[int, Rows], tuple[int, RunStream]] = {}
        self._table = self._writes[0].new_empty(len(self._nodes), *self._writes[0].shape)
        self._filled = set[int]()
        self._bases = self._sums()

    def logits(self) -> Iterator[Float[Tensor, "image class"]]:
        """The logits of each circuit."""
        for number, circuit in enumerate(self._plan.circuits):
            for writes in circuit.writes:
                self._make(writes)
            yield self._read_out(circuit.final)
            self._forget(number)

    def _forget(self, number: int) -> None:
        """Drop what no circuit after this one needs; everything, where it is too much."""
        last_read, last_write = self._plan.last_read, self._plan.last_write
        self._reads = {n: x for n, x in self._reads.items() if last_read[n] > number}
        self._writes = {n: x for n, x in self._writes.items() if n == 0 or last_write[n] > number}
        held = sum(x.numel() for x in (*self._reads.values(), *self._writes.values()))
        if held > NUMBERS_HELD:
            self._reads, self._writes = {}, {0: self._writes[0]}

    def _sums(self) -> list[Float[Tensor, "#image token width"]]:
        """The input of each sub-layer with no edge kept."""
        total = self._ablated.embed.double()
        total = total.expand(-1, len(self._vit.positions), -1)
        sums = list[Tensor]()
        for layer in range(len(self._layers)):
            sums.append(total.to(self._vit.positions.dtype))
            total = total + self._added(layer, {}, "all")
        return [*sums, total.to(self._vit.positions.dtype)]

    def _narrow(self, x: Tensor, has: Rows, needs: Rows) -> Tensor:
        """The rows that are needed; one row that stands for all tokens stays as it is."""
        return x if x.shape[-2] == 1 else narrowed(x, has, needs, self._vit.config.pools_from)

    def _ablated_write(self, place: int) -> Tensor:
        node = self._nodes[place]
        if node.block is None:
            return self._ablated.embed
        if node.head is None:
            return self._ablated.mlp_of(node.block)
        return self._ablated.z_of(node.block)[:, node.head]

    def _make(self, writes: Sequence[int]) -> None:
        """Run units of one sub-layer, those that have not been run yet."""
        missing = {n: self._plan.writes[n] for n in writes if n not in self._writes}
        if not missing:
            return
        reads = self._streams({read for write in missing.values() for read in write.reads})
        node = self._nodes[next(iter(missing.values())).place]
        layer = self._layers[2 * node.block_index + (node.kind == "mlp")]
        if isinstance(layer, MlpLayer):
            self._writes |= {n: self._mlp(layer, reads, write) for n, write in missing.items()}
            return
        assert isinstance(layer, AttentionLayer)
        needed: set[Rows] = {write.rows for write in missing.values()}
        for rows in needed:
            alike = {n: write for n, write in missing.items() if write.rows == rows}
            z = self._heads(layer, reads, [*alike.values()], rows)
            self._writes |= dict(zip(alike, z, strict=True))

    def _mlp(self, layer: MlpLayer, reads: dict[int, RunStream], write: PlannedWrite) -> RunStream:
        hidden = layer.neurons(reads[write.reads[0]])
        has = "all" if write.rows == "mean" else write.rows
        return layer.mlp.fc2(self._narrow(hidden, has, write.rows))

    def _heads(
        self,
        layer: AttentionLayer,
        reads: dict[int, RunStream],
        writes: list[PlannedWrite],
        rows: Rows,
    ) -> tuple[Tensor, ...]:
        """Z of heads of one block that are needed at the same rows."""
        attention, norm = layer.attention, layer.norm
        together: dict[int, list[int]] = {}
        for part in range(len(PARTS)):
            for write in writes:
                row = part * attention.heads + (self._nodes[write.place].head or 0)
                together.setdefault(write.reads[part], []).append(row)
        made = dict[int, Tensor]()
        for read, some in together.items():
            made |= dict(zip(some, _projected(attention, norm(reads[read]), some), strict=True))
        images = max(x.shape[0] for x in made.values())
        each = [made[row].expand(images, -1, -1) for row in sorted(made)]
        size = len(writes)
        q, k, v = (torch.stack(each[n : n + size], dim=1) for n in (0, size, 2 * size))
        q, k = attention.normalize("q", q), attention.normalize("k", k)
        z = F.scaled_dot_product_attention(q, k, v)
        return self._narrow(z, "all" if rows == "mean" else rows, rows).unbind(dim=1)

    def _streams(self, reads: set[int]) -> dict[int, RunStream]:
        """The inputs of some readers of one sub-layer."""
        made, rest = dict[int, RunStream](), list[int]()
        for index in sorted(reads):
            if index in self._reads or self._plan.parents[index] is not None:
                made[index] = self._stream(index)
            else:
                rest.append(index)
        apart = [index for index in rest if not self._nearly(index, made)]
        made |= self._summed(apart)
        for index in made:
            if index in self._plan.last_read:
                self._reads[index] = made[index]
        return made

    def _stream(self, index: int) -> RunStream:
        """The input of one reader."""
        if index not in self._reads:
            parent = self._plan.parents[index]
            x = self._summed([index])[index] if parent is None else self._onward(index, parent)
            if index not in self._plan.last_read:
                return x
            self._reads[index] = x
        return self._reads[index]

    def _onward(self, index: int, parent: int) -> RunStream:
        """A reader's input, from an earlier sub-layer's input and the writes since."""
        read, start = self._plan.reads[index], self._plan.reads[parent]
        x = self._narrow(self._stream(parent), start.rows, read.rows)
        since = {self._plan.writes[w].place: w for w in read.kept}
        for layer in range(start.layer, read.layer):
            x = x + self._added(layer, since, read.rows)
        return x

    def _added(self, layer: int, kept: dict[int, int], rows: Rows) -> Tensor | float:
        """What a sub-layer adds to the stream: its writers' writes or ablated values, constants."""
        constant = self._constant(layer, rows)
        places = range(self._plan.before[layer], self._plan.before[layer + 1])
        writes = [
            self._narrow(self._writes[kept[place]], self._plan.writes[kept[place]].rows, rows)
            if place in kept
            else self._narrow(self._ablated_write(place), "all", rows)
            for place in places
        ]
        step = self._layers[layer]
        if not isinstance(step, AttentionLayer):
            return sum(writes, start=constant)
        z = torch.stack(torch.broadcast_tensors(*writes), dim=-2).flatten(-2)
        return F.linear(z, step.attention.out.weight) + constant

    def _constant(self, layer: int, rows: Rows) -> Tensor | float:
        """What a sub-layer adds that belongs to no writer."""
        constant = self._layers[layer].constants
        if not isinstance(constant, Tensor):
            return 0.0
        return self._narrow(constant.expand(len(self._vit.positions), -1), "all", rows)

    def _difference(self, index: int, rows: Rows) -> RunStream:
        """The difference a − ã of a write in the stream, at some rows; one per writer is cached.

        Those of all tokens lie behind one another in one table, for `_summed_together`.
        """
        write = self._plan.writes[index]
        known, value = self._differences.get((write.place, rows), (None, self._writes[0]))
        if known == index:
            return value
        node = self._nodes[write.place]
        ablated = self._narrow(self._ablated_write(write.place), "all", rows)
        value = self._narrow(self._writes[index], write.rows, rows) - ablated
        if node.head is not None:
            value = value @ attention_layer(self._vit, node.block_index).output_weight(node.head)
        if rows == "all":
            value = self._table[write.place].copy_(value)
            self._filled.add(write.place)
        self._differences[write.place, rows] = index, value
        return value

    def _nearly(self, index: int, made: dict[int, RunStream]) -> bool:
        """Make what is read from a read that keeps a few writers more or fewer, if there is one."""
        reads, rows = self._plan.reads, self._plan.reads[index].rows
        near = [other for other in made if reads[other].rows in ("all", rows)]
        if not near:
            return False
        other = max(near, key=lambda one: len(reads[one].kept))
        mine, theirs = set(reads[index].kept), set(reads[other].kept)
        if len(mine ^ theirs) > min(FEW, len(mine) - 1):
            return False
        start = x = self._narrow(made[other], reads[other].rows, rows)
        for write in sorted(mine - theirs):
            x = x + self._difference(write, rows)
        for write in sorted(theirs - mine):
            x = x - self._difference(write, rows)
        if bool((_squares(x) < LEAST * _squares(start)).any()):
            return False
        made[index] = x
        return True

    def _summed(self, reads: Sequence[int]) -> dict[int, RunStream]:
        """Inputs of readers: the sum of all ablated values, plus a − ã of the kept writers."""
        made = dict[int, RunStream]()
        needed: set[Rows] = {self._plan.reads[index].rows for index in reads}
        for rows in needed:
            alike = [index for index in reads if self._plan.reads[index].rows == rows]
            many = [i for i in alike if len(self._plan.reads[i].kept) > FEW]
            many = many if len(many) > 1 else []
            for index in alike:
                if index not in many:
                    x = self._base(index)
                    for write in self._plan.reads[index].kept:
                        x = x + self._difference(write, rows)
                    made[index] = x
            if many:
                made |= self._summed_together(many, rows)
        return made

    def _summed_together(self, reads: list[int], rows: Rows) -> dict[int, RunStream]:
        """The same in one product."""
        kept = [self._plan.reads[index].kept for index in reads]
        values = {
            self._plan.writes[w].place: self._difference(w, rows) for row in kept for w in row
        }
        if rows == "all":
            places = range(max(values) + 1)
            table = self._table[: len(places)]
            for place in set(places) - self._filled:
                table[place].zero_()
            self._filled.update(places)
        else:
            places = sorted(values)
            table = torch.stack(torch.broadcast_tensors(*(values[place] for place in places)))
        mine = [{self._plan.writes[w].place for w in row} for row in kept]
        keeps = table.new_tensor([[place in row for place in places] for row in mine])
        sums = torch.mm(keeps, table.flatten(1)).view(-1, *table.shape[1:])
        return dict(zip(reads, sums.add_(self._base(reads[0])), strict=True))

    def _base(self, index: int) -> Float[Tensor, "#image _row width"]:
        """A reader's input with no edge kept."""
        read = self._plan.reads[index]
        return self._narrow(self._bases[read.layer], "all", read.rows)

    def _read_out(self, index: int) -> Float[Tensor, "image class"]:
        x = self._stream(index).expand(self._images, -1, -1)
        if self._plan.reads[index].rows == "all":
            return self._vit.read_out(x)
        return self._vit.head(self._vit.final_norm(x[:, 0]))


def _squares(x: RunStream) -> Float[Tensor, "image _row"]:
    return torch.linalg.vector_norm(x, dim=-1).square_()


def _projected(
    attention: Attention, normalized: RunStream, rows: list[int]
) -> list[Float[Tensor, "image _row head_width"]]:
    """Some queries, keys and values, named by part · heads + head, of one normalised stream."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if len(rows) < 3 * attention.heads:
        weight = weight.unflatten(0, (-1, attention.head_width))[rows].flatten(0, 1)
        bias = None if bias is None else bias.view(-1, attention.head_width)[rows].flatten()
    projected = F.linear(normalized, weight, bias)
    return list(projected.unflatten(-1, (len(rows), attention.head_width)).unbind(dim=-2))


def logits_without(
    task: PatchingTask,
    removed: Iterable[Iterable[str]],
    images: int | None = None,
    advance: Callable[..., None] = lambda steps: None,
) -> list[Float[Tensor, "image class"]]:
    """The logits for all pairs when some units write their ablated value everywhere.

    Args:
        task: the model, pairs and ablation.
        removed: sets of units; each set is removed on its own.
        images: how many pairs go at once.
        advance: called after each run, with its number of pairs as `steps`.

    Raises:
        CircuitError: memory does not suffice for one pair.
    """
    vit = task.vit
    plan = RunPlan(vit.config, consistent=task.ablation == "patch")
    for units in map(set, removed):
        plan.add(e.name for e in edges_of(vit.config) if e.writer not in units)

    def work(chunk: Pairs) -> list[Tensor]:
        found: list[Tensor] = []
        try:
            for logits in Runs(vit, plan, chunk.clean, task.ablated_writes(chunk)).logits():
                found.append(logits)
                advance(steps=len(chunk))
        except (RuntimeError, MemoryError):
            advance(steps=-len(found) * len(chunk))
            raise
        return found

    images = images or min(images_in_chunk(vit), images_that_fit(vit))
    chunks = [found for _, found in in_batches(task.pairs, images, work)]
    return [torch.cat(some) for some in zip(*chunks, strict=True)]
