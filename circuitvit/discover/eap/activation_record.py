"""One pass through the plain model that keeps what edge scores are made of.

All copies of the residual stream are equal in a full-model run, so queries, keys and values stay
fused. A head's writing is kept as z (head width), from which z @ W_O follows. Parameters are
detached: no gradient of theirs is computed, and none of the caller's is touched.

Where the class token alone is read out, nothing but the class token matters from the last block's
queries on, so the other tokens stop there: what is kept from there on has one token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.discover.eap.backward_rules import GRADIENT, HeadValues, Rules
from circuitvit.errors import CircuitError
from circuitvit.models.sublayers import AttentionLayer, MlpLayer, SubLayer, sublayers
from circuitvit.models.vit import Attention, ViT, pooled

Values = dict[str, Tensor]
"""By `embed`, `a{l}`, `m{l}` or `logits`."""

ModelStream = Float[Tensor, "image _token width"]


@dataclass
class Recording:
    """The activations of one forward pass.

    Attributes:
        embedded: what `embed` wrote, or the stream that the pass began with.
        rules: what is passed back.
        neurons: whether the MLPs' neurons are kept and watched, in place of all else.
        writes: for `a{l}` z [image head token head_width]; for `m{l}` what it writes [image token
            width], or its neurons after the activation [image token neuron].
        streams: what `a{l}`, `m{l}` and `logits` read, before the LayerNorm.
        watched: what gradients are taken of; see `slopes`.
        logits: [image class].
    """

    embedded: ModelStream
    rules: Rules
    neurons: bool
    writes: Values = field(default_factory=dict)
    streams: Values = field(default_factory=dict)
    watched: Values = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def written(self) -> Values:
        """Detached writes, `embed` included; the neurons alone if these are recorded."""
        named = self.writes if self.neurons else {"embed": self.embedded, **self.writes}
        return {name: value.detach() for name, value in named.items()}

    def read(self, name: str, stream: Tensor, value: Tensor) -> Tensor:
        """Keep what was read, and watch it or what was made of it."""
        if self.neurons or not torch.is_grad_enabled():
            return value
        self.streams[name] = stream.detach()
        return self._watch(name, value)

    def write(self, name: str, value: Tensor) -> None:
        """Keep what was written."""
        if not self.neurons:
            self.writes[name] = value

    def fire(self, name: str, post: Tensor) -> Tensor:
        """Record neurons and require their gradient, if neurons are scored."""
        if not self.neurons:
            return post
        self.writes[name] = post
        return self._watch(name, post) if torch.is_grad_enabled() else post

    def _watch(self, name: str, value: Tensor) -> Tensor:
        if not value.requires_grad:  # here the graph begins
            value = value.detach().requires_grad_(True)
        self.watched[name] = value
        return value


def record(
    vit: ViT, stream: ModelStream, *, start: int = 0, rules: Rules = GRADIENT, neurons: bool = False
) -> Recording:
    """Run the model from a stream on; with gradients enabled, watch what is read.

    Args:
        vit: the model.
        stream: what `embed` wrote, or the stream before the first sub-layer to run.
        start: the first sub-layer: 2·block for an attention, 2·block + 1 for an MLP.
        rules: what is passed back.
        neurons: keep and watch the MLPs' neurons after the activation, in place of what MLPs write
            and all that is read.
    """
    kept = Recording(stream, rules, neurons)
    last = _last_mixing(vit.config)
    for layer in sublayers(vit)[start:]:
        if isinstance(layer, AttentionLayer):
            queries = 1 if layer.block == last else stream.shape[1]
            stream = _after_attention(layer, stream, queries, kept)
        elif isinstance(layer, MlpLayer):
            stream = _after_mlp(layer, stream, kept)
        else:
            stream = _with_constants(layer, stream)
    logits = _read_out(vit, kept.read("logits", stream, stream), rules)
    kept.logits = logits.to(vit.positions.dtype)  # under autocast they are not in it
    return kept


def slopes(recording: Recording, loss: Callable[[Tensor], Tensor]) -> Values:
    """∂ℓ/∂ of what was watched, for the summed loss of the logits.

    For `a{l}` that is the output of the fused projection of queries, keys and values (before their
    own LayerNorm), for `m{l}` and `logits` their copy of the stream, or a neuron.

    Raises:
        CircuitError: the metric has no gradient.
    """
    if not recording.watched:
        return {}
    total = loss(recording.logits).sum()
    if not total.requires_grad:
        raise CircuitError(
            "the metric has no gradient with respect to the logits. Leave out argmax, detach "
            "and no_grad, or use method='exact'."
        )
    watched = recording.watched
    gradients = torch.autograd.grad(
        total, list(watched.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(watched, gradients, strict=True))


def _last_mixing(config: ViTConfig) -> int | None:
    """The block after whose attention only the class token matters, if there is one."""
    if config.pooling != "class":
        return None
    return max((block for block, heads in enumerate(config.heads) if heads), default=None)


def _after_attention(
    layer: AttentionLayer, stream: ModelStream, queries: int, kept: Recording
) -> ModelStream:
    """The stream of the first so many tokens after the attention."""
    attention = layer.attention
    projected = _linear(attention.qkv, kept.rules.normalize(layer.norm, stream))
    z = _attend(attention, kept.read(layer.name, stream, projected), queries, kept.rules)
    kept.write(layer.name, z)
    z = rearrange(z, "image head token head_width -> image token (head head_width)")
    bias = None if layer.bias is None else layer.bias.detach()
    written = F.linear(z, attention.out.weight.detach(), bias)
    return _plus(stream[:, :queries] + written, layer.constant)


def _attend(
    attention: Attention, projected: Float[Tensor, "image token row"], queries: int, rules: Rules
) -> HeadValues:
    q, k, v = rearrange(
        projected,
        "image token (part head head_width) -> part image head token head_width",
        part=3,
        head=attention.heads,
    )
    q = q[:, :, :queries]
    q = q if attention.q_norm is None else rules.normalize(attention.q_norm, q)
    k = k if attention.k_norm is None else rules.normalize(attention.k_norm, k)
    return rules.attend(q, k, v)


def _after_mlp(layer: MlpLayer, stream: ModelStream, kept: Recording) -> ModelStream:
    read = kept.read(layer.name, stream, stream.view_as(stream))
    pre = _linear(layer.mlp.fc1, kept.rules.normalize(layer.norm, read))
    post = kept.fire(layer.name, kept.rules.activate(layer.mlp.activation, pre))
    written = _linear(layer.mlp.fc2, post)
    kept.write(layer.name, written)
    return _with_constants(layer, stream + written)


def _with_constants(layer: SubLayer, stream: ModelStream) -> ModelStream:
    stream = stream if layer.bias is None else stream + layer.bias.detach()
    return _plus(stream, layer.constant)


def _plus(stream: ModelStream, constant: Tensor | None) -> ModelStream:
    return stream if constant is None else stream + constant.detach()[: stream.shape[1]]


def _read_out(vit: ViT, stream: ModelStream, rules: Rules) -> Float[Tensor, "image class"]:
    """`ViT.read_out` under the rules."""
    config = vit.config
    if config.fc_norm:
        return _linear(vit.head, rules.normalize(vit.final_norm, pooled(config, stream)))
    read = stream[:, :1] if config.pooling == "class" else stream
    return _linear(vit.head, pooled(config, rules.normalize(vit.final_norm, read)))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
