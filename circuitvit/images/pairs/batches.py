"""Pairs in batches, in order or shuffled."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from circuitvit.errors import CircuitError

Whole = TypeVar("Whole", bound=Any)


class Batches(Generic[Whole]):
    """Some pairs, so many at a time; gone through again, they come in another drawn order.

    Args:
        whole: what has a length and `subset`.
        size: pairs a batch, ≥ 1; the last may be smaller.
        shuffle: whether the order is drawn; each time gone through it is another one.
        seed: draws the orders.

    Raises:
        CircuitError: `size` is below 1 or `seed` below 0.
    """

    def __init__(self, whole: Whole, size: int, *, shuffle: bool = False, seed: int = 0) -> None:
        for name, value, least in (("size", size, 1), ("seed", seed, 0)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise CircuitError(f"{name} is {value!r}, expected a whole number ≥ {least}.")
        self._whole: Whole = whole
        self._size, self._shuffle, self._seed = int(size), shuffle, int(seed)
        self._round = 0

    def __len__(self) -> int:
        return -(-len(self._whole) // self._size)

    def __iter__(self) -> Iterator[Whole]:
        order = np.arange(len(self._whole))
        if self._shuffle:
            order = np.random.default_rng([self._seed, self._round]).permutation(order)
            self._round += 1
        for start in range(0, len(order), self._size):
            yield self._whole.subset(order[start : start + self._size])
