"""Which precision sums, differences and logarithms are computed in."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def in_single(values: Tensor) -> Tensor:
    """The values in single precision where they are in half, else as they are.

    Half precision has 8 or 11 significant bits: a metric, a sum or a difference computed in it can
    be smaller than its own rounding error.
    """
    return values.float() if values.dtype in HALF else values
