"""The caller's modes of torch, and how our own work is kept out of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def without_modes() -> Iterator[None]:
    """Leave the caller's inference mode, autocast and default device until the block ends.

    Parameters made in inference mode can never be trained. Under autocast logits are those of half
    precision, so comparing them would blame the model. Gradients stay on or off as they are.
    """
    with ExitStack() as modes:
        grows = torch.is_grad_enabled()
        modes.enter_context(torch.inference_mode(mode=False))
        modes.enter_context(torch.set_grad_enabled(grows))  # which the line before turned on
        for device in _DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield
