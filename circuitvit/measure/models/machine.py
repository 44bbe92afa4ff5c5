"""The machine that figures come from: processor, threads and versions."""

import platform
from importlib.metadata import version

import torch


def machine_of(device: torch.device) -> dict[str, str]:
    """What a figure that was measured on this device should say beside it."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # a class of its own, of which a file keeps the text
        "circuitvit": version("circuitvit"),
    }
