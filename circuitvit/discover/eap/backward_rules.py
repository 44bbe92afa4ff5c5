"""Backward rules: the gradient, or a modification of it.

The forward values are the model's own under every rule; only what comes back differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import warn
from circuitvit.models.vit import activate
from circuitvit.torch_modes import in_single

SATURATED = 4e-5
"""Error of a recomputed pattern above which attention is computed step by step: there the fused
backward pass was seen to be wrong by 1e-5 of the largest gradient."""
UNRELIABLE = 0.02
"""Error of a pattern that isn't one-hot above which its gradient is warned of."""

HeadValues = Float[Tensor, "image head _token head_width"]


@dataclass(frozen=True)
class Rules:
    """The backward rules of a ViT's three nonlinear steps.

    Attributes:
        attend: z of the queries, keys and values.
        activate: the MLP's activation, by its name in the config.
        frozen_norms: whether each LayerNorm's deviation σ counts as a constant (its mean does not).
    """

    attend: Callable[[HeadValues, HeadValues, HeadValues], HeadValues]
    activate: Callable[[str, Tensor], Tensor]
    frozen_norms: bool

    def normalize(self, norm: nn.LayerNorm, x: Float[Tensor, "*any width"]) -> Tensor:
        """The LayerNorm, without gradients of its parameters."""
        weight, bias = norm.weight.detach(), norm.bias.detach()
        if not self.frozen_norms:
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        own = in_single(x)
        centred = own - own.mean(dim=-1, keepdim=True)
        return (centred / deviation(own.detach(), norm.eps) * weight + bias).to(x.dtype)


def deviation(x: Float[Tensor, "*any width"], eps: float) -> Float[Tensor, "*any 1"]:
    """The deviation that a LayerNorm divides by, ε included."""
    return (x.var(dim=-1, correction=0, keepdim=True) + eps).sqrt()


class _TemperedSoftmax(torch.autograd.Function):
    """softmax(x) that passes back what softmax(x / temperature) would, as in GIM."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.temperature = temperature
        return scores.softmax(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        pattern, gradient = (scores / ctx.temperature).softmax(dim=-1), gradients[0]
        return pattern * (gradient - (pattern * gradient).sum(dim=-1, keepdim=True)), None


class _Scaled(torch.autograd.Function):
    """x, with its gradient multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


def _attend_by_gradient(q: HeadValues, k: HeadValues, v: HeadValues) -> HeadValues:
    error = _pattern_error(q, k) if torch.is_grad_enabled() else 0.0
    if error > SATURATED:
        return _attend_step_by_step(q, k, v, error)
    return F.scaled_dot_product_attention(q, k, v)


def _pattern_error(q: HeadValues, k: HeadValues) -> float:
    """A bound on the relative error of a pattern that is recomputed as exp(score − logsumexp).

    torch's fused backward pass does that; it is ε·|score|, and by Cauchy–Schwarz |score| ≤
    ‖q‖‖k‖/√d. Softmax's own backward pass gives exact zeros for a one-hot pattern.
    """
    with torch.no_grad():
        q, k = in_single(q), in_single(k)
        longest = [torch.linalg.vector_norm(x, dim=-1).amax() for x in (q, k)]
        return float(longest[0] * longest[1]) * q.shape[-1] ** -0.5 * torch.finfo(q.dtype).eps


def _attend_step_by_step(q: HeadValues, k: HeadValues, v: HeadValues, error: float) -> HeadValues:
    """Attention whose backward pass is softmax's own; in single precision or more."""
    with torch.autocast(q.device.type, enabled=False):
        q, k, values = in_single(q), in_single(k), in_single(v)
        pattern = _attention_scores(q, k).softmax(dim=-1)
        undecided = (pattern * (1 - pattern)).detach().amax()
        if error > UNRELIABLE and undecided > UNRELIABLE:
            warn(
                f"attention scores are so large that {q.dtype} rounds patterns by up to "
                f"{error:z.0%}, so scores of edges into queries and keys say little. Convert model "
                "and pairs to torch.float64."
            )
        return (pattern @ values).to(v.dtype)


def _attend_as_gim(q: HeadValues, k: HeadValues, v: HeadValues) -> HeadValues:
    q, k, v = _Scaled.apply(q, 0.25), _Scaled.apply(k, 0.25), _Scaled.apply(v, 0.5)
    return _TemperedSoftmax.apply(_attention_scores(q, k), 2.0) @ v


def _attend_as_relp(q: HeadValues, k: HeadValues, v: HeadValues) -> HeadValues:
    return _attention_scores(q, k).softmax(dim=-1).detach() @ v


def _attention_scores(q: HeadValues, k: HeadValues) -> Float[Tensor, "image head token key"]:
    return q * q.shape[-1] ** -0.5 @ k.mT


def _gate(name: str, x: Tensor) -> Tensor:
    """The activation as x times a gate that counts as a constant; at 0 the gate is ½ for all."""
    value = activate(name, x.detach())
    return x * torch.where(x == 0, 0.5, value / torch.where(x == 0, 1, x)).detach()


GRADIENT = Rules(_attend_by_gradient, activate, frozen_norms=False)
"""The gradient itself."""

GIM = Rules(_attend_as_gim, activate, frozen_norms=True)
"""Gradient interaction modifications (Edin et al. 2025, "GIM: Improved Interpretability for Large
Language Models", with the constants of the authors' package).

Softmax's backward pass takes the pattern at temperature 2; every LayerNorm's σ is a constant; a
product shares its gradient among its factors, so half of it goes to v, and a quarter each to q and
k, which meet in a second product. There are no gated MLPs here to share anything. As in the
authors' package the tempered softmax isn't divided by its temperature.
"""

RELP = Rules(_attend_as_relp, _gate, frozen_norms=True)
"""Relevance patching (Jafari et al. 2025, "RelP: Faithful and Efficient Circuit Discovery via
Relevance Patching"): the coefficients of layer-wise relevance propagation in place of gradients.

LN rule: σ is a constant; identity rule: act(x) is x times a constant gate; AH rule: the attention
pattern is a constant; linear layers have the 0 rule, which is their gradient. The model becomes
linear in what it reads, and relevance is conserved but for biases. By the AH rule every edge into a
query or key scores exactly 0.
"""
