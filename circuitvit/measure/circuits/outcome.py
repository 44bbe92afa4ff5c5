"""What circuits did, image by image, and their faithfulness: a ratio that may be undefined.

f(C) = (m(C) − m(∅)) / (m(full) − m(∅)). Where the denominator can't be told from zero, f can be any
number, and its interval is no help (Fieller 1954: it is unbounded). Whether that is so is settled
here, for every function that computes f.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from circuitvit.errors import CircuitError
from circuitvit.measure.bootstrap import KnownEstimate, resampled_means

RESAMPLES = 1000
"""Those that decide whether f is defined: the same for every function, whatever it was asked."""
LEAST_ERRORS = 1.5
"""A denominator must be at least so many of its standard errors. One or two images that make up all
of a difference of one sign (1 or √2 standard errors) leave an interval without 0."""


@dataclass(frozen=True)
class Outcome:
    """What some circuits did, image by image.

    Attributes:
        full: m of the full model.
        empty: m with no edges.
        circuits: m of each circuit.
        left: edges of each circuit that don't dangle.
    """

    full: Float[np.ndarray, " image"]
    empty: Float[np.ndarray, " image"]
    circuits: Float[np.ndarray, "circuit image"]
    left: tuple[int, ...]

    @cached_property
    def difference(self) -> KnownEstimate:
        """The denominator of f, m(full) − m(∅), with its 95% interval over images."""
        values = (self.full - self.empty)[None]
        means = resampled_means(values, resamples=RESAMPLES, seed=0)[:, 0]
        return KnownEstimate.of(float(values.mean()), means)

    @cached_property
    def why_undefined(self) -> str | None:
        """Why f is undefined, as a sentence with the numbers; None where it is defined."""
        near = self._near_zero()
        if near is None:
            return None
        full, empty, gap = self.full.mean(), self.empty.mean(), self.difference
        return (
            f"faithfulness is undefined: the metric is {full:z.3g} for the full model and "
            f"{empty:z.3g} with no edges, so that its denominator, their difference, is "
            f"{gap.value:z.3g} (95% interval {gap.low:z.3g} to {gap.high:z.3g} over "
            f"{len(self.full)} images), which is {near}"
        )

    def _near_zero(self) -> str | None:
        """How the denominator is too close to 0; None if it isn't."""
        values, gap = self.full - self.empty, self.difference
        vanished = _vanished(self.full.mean(keepdims=True), self.empty.mean(keepdims=True))
        if vanished.any() or gap.low <= 0 <= gap.high:
            return "not clearly different from 0"
        if len(values) < 2:  # one image tells nothing of the error
            return None
        if abs(gap.value) < LEAST_ERRORS * float(values.std(ddof=1)) / len(values) ** 0.5:
            return f"less than {LEAST_ERRORS:z.1f} standard errors"
        return None

    def refuse_undefined(self) -> None:
        """Refuse to go on without a denominator.

        Raises:
            CircuitError: f is undefined.
        """
        if self.why_undefined:
            raise CircuitError(
                f"{self.why_undefined}. Give more pairs, pairs on which the model behaves "
                "differently, or another metric, such as metric='kl'."
            )

    def faithfulness(self) -> Float[np.ndarray, " circuit"]:
        """Faithfulness of each circuit, a ratio of means over the images; NaN if undefined."""
        if self.why_undefined:
            return np.full(len(self.circuits), np.nan)
        means = self._rows().mean(axis=1)
        return (means[2:] - means[1]) / (means[0] - means[1])

    def resampled_faithfulness(
        self, *, resamples: int, seed: int
    ) -> Float[np.ndarray, "resample circuit"]:
        """The same on images drawn with replacement; NaN where a draw has no denominator."""
        means = resampled_means(self._rows(), resamples=resamples, seed=seed)
        full, empty = means[:, :1], means[:, 1:2]
        missing = _vanished(full, empty) | bool(self.why_undefined)
        return (means[:, 2:] - empty) / np.where(missing, np.nan, full - empty)

    def _rows(self) -> Float[np.ndarray, "row image"]:
        """The full model, no edges, then the circuits."""
        return np.vstack([self.full, self.empty, self.circuits])


def _vanished(
    full: Float[np.ndarray, "*draw"], empty: Float[np.ndarray, "*draw"]
) -> Bool[np.ndarray, "*draw"]:
    """Where the difference of two means is hardly more than rounding."""
    return np.abs(full - empty) < 1e-6 * np.maximum(1.0, np.maximum(np.abs(full), np.abs(empty)))
