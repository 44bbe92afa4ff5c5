"""One ONNX or pt2 file: written, read back and compared with the model before it is kept."""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from circuitvit.errors import CircuitError, reason_of, warn
from circuitvit.export.onnx_model import session_of
from circuitvit.export.quantization import AT_ONCE, write_int8
from circuitvit.files import replacing
from circuitvit.images.tensor_checks import as_bytes
from circuitvit.measure.models.cost import macs, parameters
from circuitvit.models.saved_model import SavedModel
from circuitvit.preprocessing import Preprocessing

AGREEMENT = 0.9
"""Share of the calibration images on which an INT8 file should have the model's best class."""
TRACED = 3
"""Images in the traced batch; torch.export would take a batch of 1 for a constant."""
SHARE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference to the model, by dtype, in units of the largest logit or 1."""


def write_file(
    model: Any,
    target: Path,
    kind: str,
    opset: int | None,
    preprocess: bool,
    quantize: Tensor | None,
) -> Path:
    """Write a checked model as one file, in one step."""
    metadata, images, allowed = _metadata(model), _images(model), SHARE[dtype_of(model)]
    output, agreement = "logits", 1.0
    if preprocess:
        images, output = _bytes_like(images), "probabilities"
        model = FromBytes(model)
        metadata |= {"input": "uint8 [image height width channel]", "output": output}
    batches = (images, images[:1])
    with quiet(), replacing(target) as beside, TemporaryDirectory() as folder:
        program = _traced(model, images)
        if kind != "onnx":
            _write_pt2(program, beside, metadata)
            _compare(model, batches, _run_pt2(beside, batches), allowed)
            return target
        single = beside if quantize is None else Path(folder) / "single.onnx"
        _write_onnx(program, single, metadata, opset, output)
        _compare(model, batches, _run_onnx(single, batches), allowed)
        if quantize is not None:
            agreement = _quantise(model, single, beside, quantize)
    if agreement < AGREEMENT:
        warn(
            f"the INT8 model's best class is the model's on {agreement:z.0%} of the calibration "
            "images only. Give more of them, or other ones; cv.evaluate tells its accuracy."
        )
    return target


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights."""
    return next(item.dtype for item in model.state_dict().values() if item.is_floating_point())


def _images(model: nn.Module) -> Float[Tensor, "image channel height width"]:
    """Seeded normal images of the model's shape and dtype."""
    config: Any = model.config
    shape = (TRACED, config.channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype_of(model))


def _traced(model: nn.Module, images: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    except Exception as cause:  # torch.export raises what it likes
        raise CircuitError(
            f"torch.export can't trace this {type(model).__name__}: {reason_of(cause)}. "
            "Its forward may use nothing but tensor operations that heed no value."
        ) from cause


def _write_pt2(program: ExportedProgram, beside: Path, metadata: dict[str, str]) -> None:
    made = io.BytesIO()  # torch's writer ends the process when it can't write to a file
    torch.export.save(program, made, extra_files=metadata)
    beside.write_bytes(made.getbuffer())


def _metadata(model: Any) -> dict[str, str]:
    """What a deployment needs beside the weights, as text, most of it as timm names it."""
    config, seen = model.config, getattr(model, "preprocessing", None)
    known: dict[str, Any] = {
        "input_size": [config.channels, config.image_size, config.image_size],
        "circuitvit_version": version("circuitvit"),
        "parameters": parameters(model),
        "macs": macs(model, (config.channels, config.image_size, config.image_size)),
    }
    if isinstance(model, SavedModel):
        known["fingerprint"] = model.fingerprint()
    if isinstance(seen, Preprocessing):
        each = {"mean": seen.mean, "std": seen.std}
        known |= {n: list(v) * (config.channels if len(v) == 1 else 1) for n, v in each.items()}
        known |= {"interpolation": seen.interpolation, "resize": seen.resize}
        known |= {"crop_pct": seen.crop, "preprocessing": seen.as_dict()}
        if seen.class_names is not None:
            known["class_names"] = list(seen.class_names)
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in known.items()
    }


def _write_onnx(
    program: ExportedProgram, beside: Path, metadata: dict[str, str], opset: int | None, output: str
) -> None:
    names: Any = {"input_names": ["images"], "output_names": [output], "opset_version": opset}
    try:
        made = torch.onnx.export(
            program, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, **names
        )
        assert made is not None
        written = made.model.opset_imports[""]
        made.model.metadata_props.update(metadata)
        made.save(beside, external_data=False)
    except Exception as cause:  # neither exporter has an exception of its own for all it refuses
        raise CircuitError(
            f"this model can't be written as ONNX{_of(opset)}: {reason_of(cause)}. Leave opset "
            "out, or try to='pt2'."
        ) from cause
    if opset not in (None, written):
        raise CircuitError(
            f"the installed exporter (torch {torch.__version__}) can't write this model with opset "
            f"{opset}, it took {written} instead. Give opset={written}, or another near it."
        )


def _of(opset: int | None) -> str:
    return "" if opset is None else f" with opset {opset}"


def _run_pt2(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    with torch.no_grad():
        return [module(batch) for batch in batches]


def _run_onnx(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    try:
        session = session_of(path)
        results = [session.run(None, {"images": batch.numpy()})[0] for batch in batches]
    except Exception as cause:
        raise CircuitError(
            f"onnxruntime can't run what was exported: {reason_of(cause)}. Try another opset, or "
            "to='pt2'."
        ) from cause
    return [torch.from_numpy(result) for result in results]


class FromBytes(nn.Module):
    """A model with its preprocessing in front and a softmax behind.

    It casts, scales and normalises in single precision, whatever the model's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.dtype, self.preprocessing = model, dtype_of(model), model.preprocessing
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Float[Tensor, "image class"]:
        """Probabilities of bytes [image height width channel], in single precision."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        logits = self.model(((pixels - self.mean) / self.std).to(self.dtype))
        return logits.to(torch.float32).softmax(dim=1)


def _bytes_like(images: Tensor) -> Tensor:
    """Seeded random bytes [image height width channel], as many as these images have."""
    shape = images.permute(0, 2, 3, 1).shape
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draw).to(torch.uint8)


@torch.no_grad()
def _quantise(model: nn.Module, single: Path, beside: Path, images: Tensor) -> float:
    """Write the INT8 file of a file in single precision; how often its best class is the model's.

    What it was calibrated on, and how often that is, go into its metadata.
    """
    images = images.detach().cpu().float()
    if isinstance(model, FromBytes):
        images = as_bytes(images, model.preprocessing).movedim(1, -1).contiguous()
    write_int8(single, beside, images)
    parts = images.split(AT_ONCE)
    found = torch.cat(_run_onnx(beside, parts))
    expected = torch.cat([model(part) for part in parts])
    agreement = (found.argmax(1) == expected.argmax(1)).double().mean().item()
    onnx: Any = import_module("onnx")
    written = onnx.load(os.fspath(beside))
    told = {"calibration_images": len(images), "agreement": agreement}
    written.metadata_props.add(key="quantized", value=json.dumps(told))
    onnx.save(written, os.fspath(beside))
    return agreement


@torch.no_grad()
def _compare(
    model: nn.Module, batches: Sequence[Tensor], found: Sequence[Tensor], share: float
) -> None:
    """Refuse a file whose logits are not the model's."""
    differences, largest = [], 1.0
    for batch, logits in zip(batches, found, strict=True):
        expected = model(batch).double()
        if not bool(torch.isfinite(expected).all()):
            raise CircuitError(
                f"the model's logits hold NaN or infinity in {dtype_of(model)}, so the file can't "
                "be compared with it. Look at its weights, or give another dtype."
            )
        differences.append((logits.double() - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    error, allowed = float(torch.stack(differences).amax()), share * largest
    if not error <= allowed:
        raise CircuitError(
            f"the exported file's logits differ from the model's by {error:z.2g}, allowed are "
            f"{allowed:z.2g}. It is not kept; please report this with the model's config.json."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notes on their progress and on what is deprecated in them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
