"""An exported ONNX file as a module that can be evaluated and timed like any other model.

INT8 is onnxruntime's own quantizer, with the ranges of activations from calibration images.
"""

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.errors import CircuitError, in_short, reason_of
from circuitvit.files import readable_path
from circuitvit.images.tensor_checks import as_bytes
from circuitvit.models.classifier import Classifier
from circuitvit.preprocessing import Preprocessing, fitting

_DTYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(uint8)": torch.uint8,
}  # fmt: skip
_MOST = 2**62
INPUT = "images"
"""What the file calls them."""


class OnnxModel(nn.Module, Classifier):
    """An ONNX file of `cv.export`, run by onnxruntime on the CPU; it can't be trained.

    `cv.evaluate({"dense": vit, "int8": cv.OnnxModel("m.int8.onnx")}, images, labels)` sets it
    beside the model that it was made of: give it the same normalised images. A file with the
    preprocessing in it is given the bytes that these were, and its logits are the logarithms of
    its probabilities.

    Its parameters and MACs are those of the exported model, as the file tells them: quantising
    leaves their number as it is and makes each smaller. It runs on as many threads as torch has
    when it is made.

    Args:
        path: of the file.

    Attributes:
        path: likewise.
        config: `image_size`, `channels` and `classes`.
        preprocessing: how pictures become what it looks at; None where that is not known.
        metadata: all that the file tells, as text.
        parameter_count: of the exported model.
        mac_count: its multiply-accumulates for one image.

    Raises:
        CircuitError: there is no such file, onnxruntime is missing or can't run it, or `export`
            did not write it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = readable_path(path, "ONNX model")
        if not self.path.is_file():
            raise CircuitError(f"no ONNX model at {self.path}: there is no such file.")
        self._session = session_of(self.path)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        try:
            self._read(self.metadata)
        except (CircuitError, KeyError, RecursionError, TypeError, ValueError) as cause:
            raise CircuitError(
                f"{self.path} is no ONNX file that this version of cv.export wrote "
                f"({reason_of(cause)}). Export the model again."
            ) from cause

    def _read(self, told: dict[str, str]) -> None:
        """Read the file's metadata."""
        sides = json.loads(told["input_size"])
        channels, height, width = (_count(side, "input_size") for side in sides)
        self.parameter_count, self.mac_count = (
            _count(json.loads(told[name]), name) for name in ("parameters", "macs")
        )
        known = told.get("preprocessing")
        self.preprocessing = Preprocessing.from_dict(json.loads(known)) if known else None
        (given,), (made,) = self._session.get_inputs(), self._session.get_outputs()
        self._dtype, self._output = _DTYPES[given.type], made.name
        wanted = [height, width, channels] if self._takes_bytes else [channels, height, width]
        count, *sizes = given.shape
        if sizes != wanted or height != width or isinstance(count, int) or given.name != INPUT:
            raise ValueError(f"it takes {in_short(given.name)} of {in_short(given.shape)}")
        if self._takes_bytes and self.preprocessing is None:
            raise ValueError("its preprocessing is missing")
        _, classes = made.shape
        classes = _count(classes, "classes")
        fits, gone = fitting(self.preprocessing, classes=classes, channels=channels)
        if fits is None and gone:
            raise ValueError(gone[0])
        self.config: Any = SimpleNamespace(image_size=height, channels=channels, classes=classes)

    @property
    def _takes_bytes(self) -> bool:
        return self._dtype == torch.uint8

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """Logits of normalised images [image channel height width], in single precision.

        Raises:
            CircuitError: the images have another shape, or are not on the CPU.
        """
        side, channels = self.config.image_size, self.config.channels
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side):
            raise CircuitError(
                f"images have shape {tuple(images.shape)}, this ONNX model expects [image, "
                f"{channels}, {side}, {side}]. Resize them, or add the image axis."
            )
        if images.device.type != "cpu":
            raise CircuitError(
                f"images are on {images.device}, and an ONNX model runs on the CPU. Evaluate all "
                "models there: images.cpu(), vit.cpu()."
            )
        given = images.detach()
        if self._takes_bytes and self.preprocessing is not None:
            given = as_bytes(given, self.preprocessing).movedim(1, -1).contiguous()
        found = self.run(given.to(self._dtype))
        return found.log().clamp_min(-100) if self._takes_bytes else found

    def run(self, images: Tensor) -> Float[Tensor, "image class"]:
        """The file's output for images as it takes them, in single precision.

        Raises:
            CircuitError: onnxruntime can't run it on them.
        """
        shape = (len(images), self.config.classes)
        if not len(images):  # INT8 models can't be run on none
            return torch.empty(shape)
        try:
            (found,) = self._session.run(None, {INPUT: images.numpy()})
        except Exception as cause:  # of a dozen types
            raise CircuitError(
                f"onnxruntime can't run {self.path} on {shape[0]} images: {reason_of(cause)}."
            ) from cause
        if found.shape != shape:
            raise CircuitError(
                f"{self.path} gave numbers of shape {found.shape}, expected {shape}. Export the "
                "model again."
            )
        return torch.from_numpy(found).float()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes open the file anew: a session can't be copied."""
        return OnnxModel, (self.path,)

    def extra_repr(self) -> str:
        """A summary for its repr."""
        return f"{str(self.path)!r}, {self.config.classes} classes"


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value < _MOST:
        raise ValueError(f"{name} is {in_short(value)}")
    return value


def session_of(path: Path) -> Any:
    """A session of onnxruntime for a file, on the CPU, on as many threads as torch has.

    Raises:
        CircuitError: onnxruntime is missing, or can't run the file.
    """
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        raise CircuitError(
            "ONNX models are run by onnxruntime, not installed here: pip install onnxruntime"
        ) from None
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as cause:  # of a dozen types
        raise CircuitError(f"onnxruntime can't run {path}: {reason_of(cause)}.") from cause


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
        """The calibration images, as onnxruntime reads them."""

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
