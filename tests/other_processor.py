"""Another processor, imitated: matrix products round by shape and address.

Libraries choose a kernel by shapes, strides and alignment, and kernels add up in different orders.
Which choices show differs by processor; a test that holds on one may fail on another. Here every
product and LayerNorm of other shapes, or of data at other addresses modulo 64 bytes, differs by up
to one rounding, whatever the processor. Equal runs on equally laid out memory stay equal.
"""

import zlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ROUNDED = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.native_layer_norm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


class OtherProcessor(TorchDispatchMode):
    """While it is on, products round by shape and address."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in _ROUNDED:
            first = result[0] if isinstance(result, tuple) else result
            if type(first) is torch.Tensor and first.is_floating_point():
                steps = _steps(function, args)
                if steps:
                    first.mul_(1 + steps * torch.finfo(first.dtype).eps)
        return result


def _steps(function, args) -> int:
    """−1, 0 or 1, by the operation and by shapes, strides and addresses of its tensors."""
    laid_out = [
        (tuple(t.shape), t.stride(), t.data_ptr() % 64) for t in args if isinstance(t, torch.Tensor)
    ]
    return zlib.crc32(repr((str(function), laid_out)).encode()) % 3 - 1
