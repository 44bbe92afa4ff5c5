"""Figures with their uncertainty: intervals by resampling images with replacement (Efron 1979)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from jaxtyping import Float

INTERVAL = (2.5, 97.5)
"""The percentiles between which 95% of the resamples lie."""


UNDEFINED = "undefined"
"""What is shown of a figure that has no value."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap confidence interval over images.

    All three are None where the figure is undefined: a ratio whose denominator may be zero.

    Attributes:
        value: from all images.
        low: lower end of the interval.
        high: upper end.
    """

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return _with_range(self.value, self.low, self.high)

    @classmethod
    def of(cls, value: float, samples: Float[np.ndarray, " resample"]) -> "Estimate":
        """A value, with the interval that its resamples span; undefined if the value is NaN.

        Resamples that are NaN are left out.
        """
        if np.isnan(value):
            return cls(None, None, None)
        return cls(*_with_interval(value, samples))


@dataclass(frozen=True)
class KnownEstimate(Estimate):
    """An estimate that is never undefined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: Float[np.ndarray, " resample"]) -> "KnownEstimate":
        """A value, with the interval that its resamples span; NaN ones are left out."""
        return cls(*_with_interval(value, samples))


@dataclass(frozen=True)
class Spread:
    """The distribution over several random draws; all None where it is undefined.

    Attributes:
        median: over the draws.
        low: the least.
        high: the most.
    """

    median: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """The summary of at least one value; undefined if one of them is."""
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return cls(None, None, None)
        return cls(median(known), min(known), max(known))

    def __str__(self) -> str:
        return _with_range(self.median, self.low, self.high)


def _with_interval(
    value: float, samples: Float[np.ndarray, " resample"]
) -> tuple[float, float, float]:
    low, high = np.nanpercentile(samples, INTERVAL)
    return float(value) + 0.0, float(low) + 0.0, float(high) + 0.0  # −0 becomes 0


def _with_range(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return UNDEFINED
    return f"{shown(value)} ({shown(low)} to {shown(high)})"


def shown(number: float | None) -> str:
    """A figure with three decimals, or that it is undefined."""
    return UNDEFINED if number is None else f"{number:z.3f}"


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
