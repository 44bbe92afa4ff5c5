"""Batch sizes, and smaller batches where memory runs out.

Batch sizes follow from the model's shape and the memory that is free; where memory runs out all the
same, the batch is halved, and so are those after it.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.graph.edge_graph import node_named, readers_of, writers_of
from circuitvit.images import Pairs
from circuitvit.memory import address_space_left, free_memory
from circuitvit.models.vit import ViT

IMAGES_AT_ONCE = 64
"""Images in one forward pass that keeps every writer's output."""
NUMBERS_AT_ONCE = {"cpu": 2**19, "cuda": 2**22}
"""Numbers that one reader reads in a chunk of images; on a CPU more leaves the cache."""
MOST_IMAGES_AT_ONCE = 256
STREAM_NUMBERS_AT_ONCE = 2**24
"""Numbers of the residual stream, over all blocks, in one batch: about 1 GiB of activations in
single precision, such as 9 images of ViT-B."""
SHARE_OF_MEMORY = 0.7
"""How much of the free memory may be taken."""

NO_MEMORY = (
    "memory ran out with a single pair of images. Use a machine or a device with more memory, or a "
    "smaller model."
)

BatchResult = TypeVar("BatchResult")


def images_in_chunk(vit: ViT) -> int:
    """The images in one chunk of circuit runs: a reader's input fits into the cache."""
    most = NUMBERS_AT_ONCE.get(vit.positions.device.type, NUMBERS_AT_ONCE["cuda"])
    return max(1, min(IMAGES_AT_ONCE, most // vit.positions.numel()))


def images_at_once(vit: ViT) -> int:
    """The images in one pass that keeps activations for gradients."""
    size = max(1, vit.config.depth) * vit.positions.numel()
    return min(MOST_IMAGES_AT_ONCE, max(1, STREAM_NUMBERS_AT_ONCE // size))


def images_that_fit(vit: ViT, *, of_addresses: float = SHARE_OF_MEMORY) -> int:
    """The number of pairs that the incremental engine can hold in the free memory.

    Args:
        vit: the model.
        of_addresses: which share of the address space that is left may be planned for.
    """
    device = vit.positions.device
    free = SHARE_OF_MEMORY * free_memory(device)
    free = min(free, of_addresses * address_space_left(device))
    return max(1, int(free) // (vit.positions.element_size() * numbers_an_image(vit.config)))


def numbers_an_image(config: ViTConfig) -> int:
    """The numbers that an incremental run holds for one pair, if every edge is kept."""
    heads = [name for name in writers_of(config) if node_named(name).kind == "head"]
    streams = len(writers_of(config)) + len(readers_of(config)) + 12 * (config.depth + 1)
    hidden = 4 * config.tokens * max(config.mlp_width, default=0)
    return streams * config.tokens * config.width + len(heads) * config.tokens**2 + hidden


def in_batches(
    pairs: Pairs, images: int, work: Callable[[Pairs], BatchResult]
) -> Iterator[tuple[Pairs, BatchResult]]:
    """Batches of pairs, each with what the work makes of it, in order.

    Where a batch runs out of memory it is halved, and so are those after it.

    Args:
        pairs: all of them.
        images: how many go at once, at first.
        work: called with one batch after the other, and again with a part of one that failed.

    Raises:
        CircuitError: memory does not suffice for one pair.
    """
    start = 0
    while start < len(pairs):
        batch = pairs.subset(slice(start, start + images))
        try:
            result = work(batch)
        except (RuntimeError, MemoryError) as cause:
            if not is_out_of_memory(cause):
                raise
            if len(batch) == 1:
                raise CircuitError(NO_MEMORY) from cause
            images = len(batch) // 2
            continue
        yield batch, result
        start += len(batch)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a CPU or an accelerator."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or any(
        word in str(cause).lower() for word in words
    )
