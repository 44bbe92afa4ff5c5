"""Figures with their uncertainty: intervals by resampling images with replacement (Efron 1979)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from jaxtyping import Float

INTERVAL = (2.5, 97.5)
"""The percentiles between which 95% of the resamples lie."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap confidence interval over images.

    Attributes:
        value: from all images.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_shown(self.value)} ({_shown(self.low)} to {_shown(self.high)})"

    @classmethod
    def of(cls, value: float, samples: Float[np.ndarray, " resample"]) -> "Estimate":
        """A value, with the interval that its resamples span; NaN ones are left out."""
        low, high = np.nanpercentile(samples, INTERVAL)
        return cls(float(value) + 0.0, float(low) + 0.0, float(high) + 0.0)  # −0 becomes 0


@dataclass(frozen=True)
class Spread:
    """What several draws of something random gave.

    Attributes:
        median: over the draws.
        low: the least.
        high: the most.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The summary of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_shown(self.median)} ({_shown(self.low)} to {_shown(self.high)})"


def _shown(number: float) -> str:
    return f"{number:z.3f}"


def resampled_means(
    values: Float[np.ndarray, "row image"], *, resamples: int, seed: int
) -> Float[np.ndarray, "resample row"]:
    """The mean of every row over images that are drawn with replacement, the same for all rows.

    Rows are added up by numpy's own sum: the rounding of a matrix product depends on where in
    memory the values lie, and the same seed has to give the same interval.
    """
    images = values.shape[1]
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(values)))
    for index in range(resamples):
        drawn = generator.integers(images, size=images)
        means[index] = (values * np.bincount(drawn, minlength=images)).sum(axis=1)
    return means / images
