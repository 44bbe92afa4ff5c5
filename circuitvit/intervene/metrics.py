"""Metrics of logits: one value an image, to be minimised."""

from collections.abc import Callable, Sized
from inspect import signature
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuitvit.errors import CircuitError
from circuitvit.torch_modes import in_single


@runtime_checkable
class LabelledPairs(Protocol):
    """The part of `Pairs` that metrics look at."""

    @property
    def labels(self) -> Int[Tensor, " image"] | None:
        """The classes of the clean images."""
        ...

    @property
    def corrupt_labels(self) -> Int[Tensor, " image"] | None:
        """The classes of the corrupt images."""
        ...


Metric = str | Callable[[Tensor, LabelledPairs], Tensor]
"""A name of `NAMES`, or a callable from logits [image class] and pairs to values [image]."""

Loss = Callable[[Float[Tensor, "image class"], LabelledPairs, Float[Tensor, "image class"]], Tensor]
"""The metric of some logits, given their pairs and the full model's logits on the clean images."""

_NEEDS = {
    "logit_difference": ("labels", "corrupt_labels"),
    "cross_entropy": ("labels",),
    "probability": ("labels",),
    "accuracy": ("labels",),
    "kl": (),
}
NAMES = tuple(_NEEDS)


def metric_name(metric: Metric) -> str:
    """The metric's name as it is recorded."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def loss_of(metric: Metric, pairs: LabelledPairs, classes: int) -> Loss:
    """The loss function of a metric, checked against the pairs.

    * `logit_difference`: −(logit[label] − logit[corrupt_label])
    * `cross_entropy`: −log p[label]
    * `probability`: −p[label]
    * `kl`: KL(p_full ‖ p)
    * `accuracy`: −1[argmax = label]

    Logits in half precision are taken to single first, also before they go to a callable; it gets a
    copy, so it may write to it.

    Raises:
        CircuitError: the name is unknown, or the pairs lack the labels it needs, or these are out
            of range. A callable's result is checked when it comes.
    """
    if callable(metric):
        checked = _checked(metric, len(pairs) if isinstance(pairs, Sized) else None)
        return lambda logits, chunk, full: checked(in_single(logits).clone(), chunk, full)
    if metric not in _NEEDS:
        raise CircuitError(f"metric is {metric!r}, expected one of {NAMES} or a callable.")
    for name in _NEEDS[metric]:
        _check_labels(getattr(pairs, name), name, metric, classes)
    return lambda logits, chunk, full: _named_loss(
        metric, in_single(logits), chunk, in_single(full)
    )


_AT_CLEAN = ("eap", "gim", "relp")
"""Methods whose only gradient is taken at the clean images."""


def check_differentiable(metric: Metric, method: str, *, steps: int | None = None) -> None:
    """Refuse metrics without a useful gradient.

    Raises:
        CircuitError: `accuracy`, whose gradient is zero everywhere, or `kl` with a method that
            looks at the clean images only, as `eap-ig-activations` with one step does.
    """
    if metric == "accuracy":
        raise CircuitError(
            "accuracy has no gradient. Use metric='logit_difference' or 'cross_entropy', or "
            "method='exact'."
        )
    at_clean = method in _AT_CLEAN or (method, steps) == ("eap-ig-activations", 1)
    if metric == "kl" and at_clean:
        raise CircuitError(
            f"the gradient of kl is zero where the model is its own reference, so plain {method} "
            "would score every edge 0. Use method='eap-ig-inputs', or metric='logit_difference'."
        )


def _check_labels(labels: Tensor | None, name: str, metric: str, classes: int) -> None:
    if labels is None:
        raise CircuitError(
            f"metric {metric!r} needs {name}, but the pairs have none. Give Pairs({name}=...)."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise CircuitError(
            f"{name} are out of range: they go from {low} to {high}, this model has {classes} "
            f"classes, expected 0 to {classes - 1}."
        )


def _named_loss(metric: str, logits: Tensor, pairs: LabelledPairs, full: Tensor) -> Tensor:
    if metric == "kl":
        reference, own = F.log_softmax(full, dim=-1), F.log_softmax(logits, dim=-1)
        return (reference.exp() * (reference - own)).sum(dim=-1)
    labels = pairs.labels
    assert labels is not None
    if metric == "logit_difference":
        assert pairs.corrupt_labels is not None
        return _at(logits, pairs.corrupt_labels) - _at(logits, labels)
    if metric == "cross_entropy":
        return -_at(F.log_softmax(logits, dim=-1), labels)
    if metric == "probability":
        return -_at(logits.softmax(dim=-1), labels)
    return -(logits.argmax(dim=-1) == labels).to(logits.dtype)


def _at(
    values: Float[Tensor, "image class"], labels: Int[Tensor, " image"]
) -> Float[Tensor, " image"]:
    return values.gather(-1, labels[:, None])[:, 0]


def _checked(metric: Callable[[Tensor, LabelledPairs], Tensor], count: int | None) -> Loss:
    """The loss of a callable, whose answers are checked; `count` is how many pairs there are."""

    def loss(logits: Tensor, pairs: LabelledPairs, full: Tensor) -> Tensor:
        try:
            signature(metric).bind(logits, pairs)
        except TypeError as cause:
            raise CircuitError(
                f"the metric {metric_name(metric)} can't be called with two arguments ({cause}), "
                "expected a function of logits [image class] and pairs."
            ) from cause
        except ValueError:  # a builtin may have no signature
            pass
        streamed = _streamed(len(logits), count)
        try:
            values = metric(logits, pairs)
        except (IndexError, RuntimeError, TypeError, ValueError) as cause:
            # A batch that is too large shrinks by itself, and what fails on all pairs has a cause
            # of its own, which its author reads best as it is.
            if not streamed or "memory" in str(cause).lower() or isinstance(cause, CircuitError):
                raise
            first = next(iter(str(cause).strip().splitlines()), type(cause).__name__).rstrip(".")
            raise CircuitError(
                f"the metric {metric_name(metric)} failed ({first}). {streamed}"
            ) from cause
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            shape = (
                f"a tensor of shape {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else f"a {type(values).__name__}"
            )
            raise CircuitError(
                f"the metric {metric_name(metric)} returned {shape}, expected a tensor with one "
                f"value an image, [{len(logits)}]. {streamed or 'Leave out a mean over images.'}"
            )
        if not torch.isfinite(values).all():
            raise CircuitError(
                f"the metric {metric_name(metric)} returned NaN or infinity. Clamp what it divides "
                "by or takes the logarithm of."
            )
        return in_single(values)

    return loss


def _streamed(images: int, count: int | None) -> str:
    """What a metric has to know that sees a batch of the pairs; nothing if it sees all."""
    if count in (None, images):
        return ""
    return (
        f"It was given {images} of the {count} pairs, since pairs are streamed in batches: take "
        "labels from the second argument (pairs.labels are those of the batch), not from outside."
    )
