"""Drawing images so that every class gets its share: the same seed draws the same images."""

import numpy as np

from circuitvit.errors import CircuitError

MOST_SEED = 2**128
"""Beyond it, seeds are too long for a file of JSON."""

Places = np.ndarray
"""Positions of images in their table, int64."""


def stratified(labels: np.ndarray, sizes: tuple[int, ...], seed: int) -> tuple[Places, ...]:
    """Cut images into parts of given sizes, each class in proportion; what is left comes last.

    Each class is shuffled and its images spread evenly over [0, 1); going up from 0, the first
    `sizes[0]` images are the first part, and so on. So no class is off its share by more than one
    image in a part, and the sizes are exact.

    Args:
        labels: the class of each image [image].
        sizes: number of images of each part, together at most all of them.
        seed: draws the order within the classes.
    """
    order, ranks, counts = _ranked(labels, seed)
    spread = order[np.lexsort((order, (ranks + 0.5) / counts))]
    return tuple(np.sort(part) for part in np.split(spread, np.cumsum(sizes)))


def balanced(labels: np.ndarray, count: int, seed: int) -> Places:
    """Draw `count` images without replacement, as evenly over the classes as there are images.

    The classes take turns, in an order drawn once: any head of the result is balanced as well.
    """
    order, ranks, _ = _ranked(labels, seed)
    turns = np.random.default_rng([seed, 1]).permutation(int(labels.max()) + 1)
    return order[np.lexsort((turns[labels[order]], ranks))][:count]


def _ranked(labels: np.ndarray, seed: int) -> tuple[Places, np.ndarray, np.ndarray]:
    """Images in a drawn order, each one's rank within its class, and its class's size."""
    if seed < 0:
        raise CircuitError(f"seed is {seed}, expected a whole number ≥ 0.")
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    return order, ranks_of(labels[order]), np.bincount(labels)[labels[order]]


def ranks_of(labels: np.ndarray) -> np.ndarray:
    """How many images of its own class stand before each image."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
