"""INT8 by onnxruntime's own quantizer, with the ranges of activations from calibration images."""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitvit.errors import CircuitError, reason_of

AT_ONCE = 32
"""Calibration images that are run together."""


def write_int8(source: Path, target: Path, images: Tensor) -> None:
    """Write a copy of an ONNX file whose products by weights are of 8 bits.

    Weights are quantised a channel at a time to 7 of 8 bits (without that, sums overflow on
    processors without VNNI), what they are multiplied by to 8, within the least and largest value
    on the calibration images. Attention, LayerNorms, softmax and GELU stay in single precision.

    Args:
        source: an ONNX file in single precision.
        target: the file to write.
        images: as the file takes them.

    Raises:
        CircuitError: onnxruntime can't quantise it.
    """
    quantization: Any = import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        """The calibration images, as onnxruntime asks for them."""

        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(images.split(AT_ONCE))

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None after the last."""
            part = next(self.left, None)
            return None if part is None else {"images": part.numpy()}

    kinds = quantization.QuantType
    try:
        quantization.quantize_static(
            os.fspath(source),
            os.fspath(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=kinds.QUInt8,
            weight_type=kinds.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )
    except Exception as cause:  # it raises what it likes
        raise CircuitError(
            f"onnxruntime can't quantise this model: {reason_of(cause)}. Export it without "
            "quantize=."
        ) from cause
