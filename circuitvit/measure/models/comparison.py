"""Models compared on the same images: accuracy, cost and time, pair by pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from circuitvit.errors import CircuitError
from circuitvit.measure.bootstrap import KnownEstimate, resampled_means
from circuitvit.measure.models.accuracy import RESAMPLES, Classification
from circuitvit.measure.models.latency import paired_ratio
from circuitvit.measure.models.report import Report


@dataclass(frozen=True, eq=False)
class ComparedModels:
    """Models on the same labelled images: how they classify, what they cost, and who is better.

    Attributes:
        report: accuracy, parameters, MACs and latency by model, and the machine.
        classified: by model, how it classifies.
        class_names: in the logits' order.
        batch: the batch size that `cost`, `efficiency`, `pareto` and `advice` refer to, the
            largest that was timed; None if none was, where GFLOPs take the place of time.
        seed: which drew the bootstrap samples.
    """

    report: Report
    classified: Mapping[str, Classification]
    class_names: tuple[str, ...]
    batch: int | None
    seed: int

    def __getitem__(self, name: str) -> Classification:
        return self.classified[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The models, in the order given."""
        return tuple(self.classified)

    def top1(self, name: str) -> float:
        """Share of images that a model gets right, 0–1."""
        return self.classified[name].accuracy.top1

    def gflops(self, name: str) -> float:
        """Billions of floating-point operations for one image: 2 × MACs ÷ 10⁹."""
        return 2e-9 * self.report[name].macs

    def cost(self, name: str) -> float:
        """Milliseconds for a batch of `batch` images, or GFLOPs if nothing was timed.

        Time is the baseline's median × the ratio to it that was paired round by round, so that
        costs stand to each other as `ratio` does; the report's `median_ms` are each model's own.
        """
        return self.gflops(name) if self.batch is None else self.milliseconds(name, self.batch)

    def milliseconds(self, name: str, batch: int) -> float:
        """Time for a batch of so many images: the baseline's median × the paired ratio to it.

        Raises:
            CircuitError: that batch size was not timed.
        """
        if batch not in self.report.null:
            raise CircuitError(
                f"batch size {batch} was not timed, only {sorted(self.report.null)}. Give it to "
                "evaluate in batches=(…)."
            )
        base = self.report[self.report.baseline].latency[batch]
        return base.median_ms * self.report[name].latency[batch].ratio

    def images_per_second(self, name: str, batch: int | None = None) -> float | None:
        """Throughput at a batch size, by default `batch`, from `milliseconds`.

        None if no size is given and nothing was timed.

        Raises:
            CircuitError: that batch size was not timed.
        """
        batch = self.batch if batch is None else batch
        return None if batch is None else 1e3 * batch / self.milliseconds(name, batch)

    def efficiency(self, name: str) -> float | None:
        """Top-1 (0–1) per millisecond of `cost`; None if nothing was timed."""
        return None if self.batch is None else self.top1(name) / self.cost(name)

    def dominators(self, name: str) -> tuple[str, ...]:
        """The models that are no less accurate and no slower than this, and better in one."""
        mine = (-self.top1(name), self.cost(name))
        theirs = {other: (-self.top1(other), self.cost(other)) for other in self.names}
        return tuple(
            other
            for other, one in theirs.items()
            if one[0] <= mine[0] and one[1] <= mine[1] and one != mine
        )

    def pareto(self) -> tuple[str, ...]:
        """The models that no other dominates, the fastest first.

        A model is dominated if another has at least its top-1 and at most its `cost`, and is
        strictly better in one of them. It goes by the figures themselves, not by their
        intervals; of two with both the same neither dominates.
        """
        return tuple(sorted((n for n in self.names if not self.dominators(n)), key=self.cost))

    def difference(self, name: str, other: str) -> KnownEstimate:
        """Top-1 of one model minus another's, with its 95% interval, paired over images."""
        rows = self._samples[:, self.names.index(name)], self._samples[:, self.names.index(other)]
        return KnownEstimate.of(self.top1(name) - self.top1(other), rows[0] - rows[1])

    @cached_property
    def _samples(self) -> Float[np.ndarray, "resample model"]:
        right = np.stack([self.classified[name].right for name in self.names]).astype(float)
        return resampled_means(right, resamples=RESAMPLES, seed=self.seed)

    def ratio(self, name: str, other: str | None = None) -> KnownEstimate:
        """Time as a share of another model's, with its 95% interval; of MACs if none was timed.

        Any two models are paired round by round. Evaluations of older versions kept no rounds:
        theirs is the quotient of the two ratios to the baseline, with the widest interval that
        these allow. A baseline's own ratio is 1, with the interval of it against itself.

        Args:
            name: the model.
            other: what it is compared with; by default the baseline.
        """
        base = self.report.baseline
        other = base if other is None else other
        if self.batch is None:
            value = self.report[name].macs / max(1, self.report[other].macs)
            return KnownEstimate(value, value, value)
        if base == other:
            own = name == base
            item = self.report.null[self.batch] if own else self.report[name].latency[self.batch]
            value = 1.0 if own else item.ratio
            return KnownEstimate(value, min(value, item.ratio_low), max(value, item.ratio_high))
        if self.has_rounds:
            mine, theirs = (self.report[n].latency[self.batch].rounds_ms for n in (name, other))
            return paired_ratio(mine, theirs, seed=self.seed)
        one, two = self.ratio(name), self.ratio(other)
        return KnownEstimate(one.value / two.value, one.low / two.high, one.high / two.low)

    @property
    def has_rounds(self) -> bool:
        """Whether the time of every round is known, so that any two models can be paired."""
        if self.batch is None:
            return False
        return all(row.latency[self.batch].rounds_ms for row in self.report.rows)

    def is_faster(self, name: str, other: str) -> bool:
        """Whether one model is shown to cost less than another.

        Without times, fewer MACs. With them, the 95% interval of the ratio of the two, paired round
        by round, has to end below what the baseline claims against itself; in evaluations of older
        versions, their two intervals against the baseline may not touch.
        """
        if not self.has_rounds or self.batch is None:
            return self.ratio(name).high < self.ratio(other).low
        return self.ratio(name, other).high < min(1.0, self.report.null[self.batch].ratio_low)
