"""Sums of differences times gradients for every edge.

There is one product for the queries, keys and values of each block with the differences of all
earlier writers, and one for all MLPs and `logits`; a few images at a time, without a table for all.

With G_r the gradient at a reader's normalised input x̂, and σ the deviation (ε included), the
LayerNorm passes back ∂ℓ/∂x_r = (1/σ)[G_r − mean(G_r) − x̂ (x̂·G_r)/width]. For a head's reader
G_r = γ W_rᵀ g_r, so the mean is taken off the weights once, and x̂·G_r is a product of head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuitvit.discover.eap.activation_record import Recording, Values
from circuitvit.graph.edge_graph import places_of, writers_before, writers_of
from circuitvit.models.sublayers import AttentionLayer, sublayers
from circuitvit.models.vit import PARTS, ViT

NUMBERS_AT_ONCE = 2**23
"""Numbers in a table of differences [writer token image width], if more than one image's."""

Spans = tuple[slice, ...]
"""Runs of tokens that are scored apart."""

EdgeSums = dict[str, Float[Tensor, "span *_part_head _writer"]]
"""By `a{l}` [span part head writer], `m{l}` and `logits` [span writer]; sums over images."""


@dataclass
class ReadGradients:
    """∂ℓ/∂x_r of every reader over some passes: a weighted sum, with the heads' still factored.

    Attributes:
        slopes: for `a{l}` Σ g/σ [image token row], for `m{l}` and `logits` Σ ∂ℓ/∂x.
        parallel: for `a{l}`, pass by pass, (x̂·G_r)/(σ width) [image token reader] and x̂.
    """

    slopes: Values = field(default_factory=dict)
    parallel: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)


class EdgeProducts:
    """Edge sums of a model, batch by batch.

    Args:
        vit: the model.
        spans: the runs of tokens to sum apart.
        frozen_norms: whether σ counts as a constant.
    """

    def __init__(self, vit: ViT, spans: Spans, *, frozen_norms: bool) -> None:
        self._vit, self._spans, self._frozen = vit, spans, frozen_norms
        self._scratch: dict[str, Tensor] = {}
        self._heads = {
            layer.name: layer for layer in sublayers(vit) if isinstance(layer, AttentionLayer)
        }
        self._weights = {name: _reader_weights(layer) for name, layer in self._heads.items()}

    def zeros(self) -> EdgeSums:
        """Sums of nothing, in double precision."""
        config, before = self._vit.config, writers_before(self._vit.config)
        shapes: dict[str, tuple[int, ...]] = {"logits": (before["logits"],)}
        for block, heads in enumerate(config.heads):
            if heads:
                shapes[f"a{block}"] = (len(PARTS), heads, before[f"a{block}.h0"])
            if config.mlp_width[block]:
                shapes[f"m{block}"] = (before[f"m{block}"],)
        device, spans = self._vit.positions.device, len(self._spans)
        return {
            name: torch.zeros(spans, *shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    def gather(
        self, gradients: ReadGradients, recording: Recording, slopes: Values, *, share: float
    ) -> None:
        """Add a pass to the gradients; its slopes and what it watched are used up.

        Args:
            gradients: what is added to.
            recording: the pass.
            slopes: its gradients.
            share: its weight.
        """
        for name in list(slopes):
            slope = slopes.pop(name).to(self._vit.positions.dtype)
            if name.startswith("a"):
                self._gather_heads(gradients, name, recording, slope, share)
            elif share != 1:
                slope = slope * share
            seen = gradients.slopes.get(name)
            gradients.slopes[name] = slope if seen is None else seen.add_(slope)

    def _gather_heads(
        self,
        gradients: ReadGradients,
        name: str,
        recording: Recording,
        slope: Float[Tensor, "image token row"],
        share: float,
    ) -> None:
        norm, (weight, bias) = self._heads[name].norm, self._weights[name]
        stream, projected = recording.streams[name], recording.watched.pop(name).detach()
        normalized, _, scale = torch.native_layer_norm(
            stream.to(slope.dtype), norm.normalized_shape, None, None, norm.eps
        )
        if share != 1:
            scale = scale * share
        parallel = slope.new_empty(*slope.shape[:2], len(weight))
        projected = projected.to(slope.dtype)
        for some in self._chunks(len(slope)):
            scaled = slope[some].mul_(scale[some])
            if not self._frozen:
                products = projected[some].sub_(bias).mul_(scaled).unflatten(-1, weight.shape[:2])
                torch.sum(products, dim=-1, out=parallel[some])
        if not self._frozen:
            parallel /= normalized.shape[-1]
            gradients.parallel.setdefault(name, []).append((parallel, normalized))

    def _chunks(self, images: int) -> Iterator[slice]:
        """A few images at a time, so that a table of all their differences stays small."""
        size = len(writers_of(self._vit.config)) * self._vit.positions.numel()
        at_once = max(1, NUMBERS_AT_ONCE // size)
        for start in range(0, images, at_once):
            yield slice(start, min(start + at_once, images))

    def add(self, sums: EdgeSums, differences: Values, gradients: ReadGradients) -> None:
        """Add to the sums: differences times gradients, over tokens, width and images.

        Args:
            sums: what is added to.
            differences: ã − a of consecutive writers, by `embed`, `a{l}` (of z) and `m{l}`.
            gradients: of passes on the same images.
        """
        for some in self._chunks(len(gradients.slopes["logits"])):
            first, table = self._table(differences, some)
            for names in self._together(gradients.slopes):
                gradient = self._gradient(gradients, names, some)
                self._multiply(sums, names, gradient, first, table)

    def _writers(self, name: str) -> int:
        return self._vit.config.heads[int(name[1:])] if name.startswith("a") else 1

    def _table(
        self, differences: Values, some: slice
    ) -> tuple[int, Float[Tensor, "writer token image width"]]:
        """Differences of consecutive writers in full width, and the place of the first.

        Writers that are kept at fewer tokens have nothing of meaning at the others.
        """
        images, tokens = len(next(iter(differences.values()))[some]), len(self._vit.positions)
        rows = [self._writers(name) for name in differences]
        table = self._room("table", sum(rows), tokens, images)
        for part, (name, values) in zip(table.split(rows), differences.items(), strict=True):
            if name.startswith("a"):
                attention = self._heads[name].attention
                z = rearrange(values[some].to(table.dtype), "i head t d -> head (t i) d")
                weight = attention.output_weight().detach()
                torch.bmm(z, weight, out=part[:, : values.shape[-2]].view(*z.shape[:2], -1))
            else:
                part[0, : values.shape[-2]] = values[some].transpose(0, 1)
        return self._place(next(iter(differences))), table

    def _place(self, name: str) -> int:
        return places_of(self._vit.config)[f"{name}.h0" if name.startswith("a") else name]

    def _gradient(
        self, gradients: ReadGradients, names: list[str], some: slice
    ) -> Float[Tensor, "reader _token image width"]:
        """∂ℓ/∂x of some readers on some images."""
        slopes = [gradients.slopes[name][some] for name in names]
        if not names[0].startswith("a"):
            return torch.stack([slope.transpose(0, 1) for slope in slopes])
        weight, _ = self._weights[names[0]]
        by_reader = rearrange(slopes[0], "i t (reader d) -> reader (t i) d", reader=len(weight))
        out = self._room("gradient", len(weight), slopes[0].shape[1], len(slopes[0]))
        torch.bmm(by_reader, weight, out=out.view(*by_reader.shape[:2], -1))
        for parallel, normalized in gradients.parallel.get(names[0], ()):
            along = rearrange(parallel[some], "i t reader -> reader t i 1")
            out.addcmul_(along, normalized[some].transpose(0, 1), value=-1)
        return out

    def _together(self, slopes: Values) -> Iterator[list[str]]:
        """Each block's heads; then all MLPs and `logits`, those at equally many tokens at once."""
        by_tokens: dict[int, list[str]] = {}
        for name, slope in slopes.items():
            if name.startswith("a"):
                yield [name]
            else:
                by_tokens.setdefault(slope.shape[1], []).append(name)
        yield from by_tokens.values()

    def _multiply(
        self,
        sums: EdgeSums,
        names: list[str],
        gradient: Float[Tensor, "reader _some_tokens image width"],
        first: int,
        table: Float[Tensor, "writer token image width"],
    ) -> None:
        """One product of some readers' gradients with the differences of all earlier writers."""
        columns = [min(self._before(name) - first, len(table)) for name in names]
        rows = [self._readers(name) for name in names]
        earlier = table[: max(columns), : gradient.shape[1]]
        for place, span in enumerate(self._spans):
            by_token = (x[:, span].transpose(0, 1).flatten(2) for x in (gradient, earlier))
            mine, theirs = by_token  # one product a token, as threads share out only those
            product = torch.bmm(mine, theirs.mT).sum(dim=0)
            for name, column, part in zip(names, columns, product.split(rows), strict=True):
                target = sums[name][place][..., first : first + column]
                target += part[:, :column].reshape(target.shape)

    def _room(
        self, what: str, rows: int, tokens: int, images: int
    ) -> Float[Tensor, "_row _token _image width"]:
        """Memory to write into; kept, since fresh memory costs more time than what fills it."""
        width = self._vit.config.width
        size = rows * tokens * images * width
        if what not in self._scratch or self._scratch[what].numel() < size:
            self._scratch[what] = self._vit.positions.new_empty(size)
        return self._scratch[what][:size].view(rows, tokens, images, width)

    def _readers(self, name: str) -> int:
        return len(self._weights[name][0]) if name.startswith("a") else 1

    def _before(self, name: str) -> int:
        return writers_before(self._vit.config)[f"{name}.h0" if name.startswith("a") else name]


def _reader_weights(layer: AttentionLayer) -> tuple[Tensor, Tensor]:
    """γ W of each of a block's 3 × heads readers, less its mean over the width, and b + W β.

    They are [reader head_width width] and [row]: the projection of x̂, and what is added to it.
    """
    weight, bias = (folded.detach() for folded in layer.folded())
    centred = weight - weight.mean(dim=-1, keepdim=True)
    attention = layer.attention
    return centred.unflatten(0, (len(PARTS) * attention.heads, attention.head_width)), bias
