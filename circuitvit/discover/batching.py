"""Batches of pairs that stream through the model, and shrink when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from circuitvit.discover.task import Problem
from circuitvit.errors import CircuitError
from circuitvit.images import Pairs
from circuitvit.models.vit import ViT
from circuitvit.progress import progress

STREAM_NUMBERS_AT_ONCE = 2**24
"""Numbers of the residual stream, over all blocks, in one batch: about 1 GiB of activations in
single precision, such as 9 images of ViT-B."""
MOST_IMAGES_AT_ONCE = 256

NO_MEMORY = (
    "memory ran out with a single pair of images. Use a machine or a device with more memory, or a "
    "smaller model."
)

Sums = TypeVar("Sums")


def images_at_once(vit: ViT) -> int:
    """How many images one batch may hold."""
    size = max(1, vit.config.depth) * vit.positions.numel()
    return min(MOST_IMAGES_AT_ONCE, max(1, STREAM_NUMBERS_AT_ONCE // size))


def streamed(
    problem: Problem, work: Callable[[Pairs], Sums], add: Callable[[Sums, Sums], Sums]
) -> Sums:
    """What the work makes of all pairs, batch by batch, added up.

    Where a batch runs out of memory it is halved, and so are those after it.

    Raises:
        CircuitError: memory does not suffice for one pair.
    """
    total: Sums | None = None
    start, images, pairs = 0, images_at_once(problem.vit), problem.pairs
    with progress("EAP", len(pairs)) as advance:
        while start < len(pairs):
            batch = pairs.subset(slice(start, start + images))
            try:
                done = work(batch)
            except (RuntimeError, MemoryError) as cause:
                if not is_out_of_memory(cause):
                    raise
                if len(batch) == 1:
                    raise CircuitError(NO_MEMORY) from cause
                images = len(batch) // 2
                continue
            total = done if total is None else add(total, done)
            start += len(batch)
            advance(steps=len(batch))
    assert total is not None
    return total


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a CPU or an accelerator."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or any(
        word in str(cause).lower() for word in words
    )
