"""Seeds of everything random in a training, whatever was drawn before.

What is drawn for an image depends on the seed, the epoch and its place in the epoch's order; what
is drawn for a step on seed, epoch and step. So a run that is resumed, or shared by more processes,
draws the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What is drawn; each has a stream of its own, so that one more doesn't change the others."""

    PICTURE = 1
    DISTURBANCE = 2
    MIX = 3
    DROPPED_PATHS = 4
    ADAPTER = 5


def seed_of(*key: int) -> int:
    """A seed below 2³² that depends on all of the numbers."""
    return int(np.random.SeedSequence(list(key)).generate_state(1)[0])


@contextmanager
def own_generator() -> Iterator[torch.Generator]:
    """Give torch's CPU generator, to seed at will; afterwards it is as it was.

    torchvision's transforms draw from it and take no other.
    """
    state = torch.default_generator.get_state()
    try:
        yield torch.default_generator
    finally:
        torch.default_generator.set_state(state)
