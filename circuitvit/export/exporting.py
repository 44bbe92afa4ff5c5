"""Exports a model as an ONNX or pt2 file, or as a folder that timm or transformers reads.

A copy of the model is traced on the CPU with a batch of any size. What was written is read back,
onnxruntime and all, and compared with the model before it takes its place.
"""

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
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError, reason_of, warn
from circuitvit.export.library_folder import KINDS, write_folder
from circuitvit.export.onnx_model import AT_ONCE, session_of, write_int8
from circuitvit.files import replacing
from circuitvit.images.tensor_checks import as_bytes, image_problems
from circuitvit.measure.models.cost import macs, parameters, uncompiled
from circuitvit.models.saved_model import SavedModel, without_hooks
from circuitvit.plain_weights import plain_copy
from circuitvit.preprocessing import Preprocessing
from circuitvit.torch_modes import in_default_modes

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
    """Metadata for deployment, as text; most names are timm's."""
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


Format = Literal["onnx", "pt2", "timm", "transformers"]
FILES = ("onnx", "pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_DTYPES = (torch.float32, torch.float16)  # onnxruntime has no convolution in others


@in_default_modes
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: Format | None = None,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    preprocess: bool = False,
    quantize: Tensor | None = None,
) -> Path:
    """Write a model as one ONNX or pt2 file, or as a folder of timm or transformers.

    A folder of `timm` is read by `timm.create_model("local-dir:FOLDER", pretrained=True)`, one of
    `transformers` by `AutoModelForImageClassification.from_pretrained("FOLDER")`, where the shape
    allows it; preprocessing and class names go along. Files take a batch of any size.

    A file holds what a deployment needs beside the weights, as text: `class_names`, `mean`, `std`
    (a value a channel) and `input_size` (channels, height, width) as JSON lists, `interpolation`,
    `resize`, `crop_pct`, `preprocessing` (all of `cv.Preprocessing` as JSON), `fingerprint` and
    `circuitvit_version`. What isn't known is left out. onnxruntime gives it as
    `session.get_modelmeta().custom_metadata_map`, a pt2 file as extra files of these names.

    The model is copied and traced in eval mode, on the CPU. In ONNX the input is called `images`,
    the output `logits`; `torch.export.load(path).module()` gives a pt2 file back as a module. The
    file is compared with the model on 3 seeded normal images and on 1 before it is put in place.

    With `preprocess=True` a file takes pictures of the model's size as they are, uint8 [image
    height width channel] (grey or RGB, as many channels as the model has), scales and normalises
    them, and gives `probabilities`. Resizing and cropping stay outside: `interpolation`, `resize`
    and `crop_pct` tell how they are done, `vit.predict` does them.

    With `quantize=images` an ONNX file computes the products by weights in INT8, by onnxruntime's
    static quantizer; it has a third to a quarter of the size. Whether it is quicker depends on the
    processor and the model (small ones often are not), and so does what it loses:
    `cv.evaluate({"dense": vit, "int8": cv.OnnxModel(path)}, images, labels)` tells both.
    `quantized` in its metadata has the number of calibration images and on what share of them its
    best class is the model's; below 90% a warning says so.

    Args:
        model: a `ViT`, or another module from images to logits whose `config` is a `ViTConfig`;
            also after `torch.compile`.
        path: the file to write, or the folder.
        to: `onnx`, which needs `circuitvit[onnx]`, `pt2`, `timm` or `transformers`; by default the
            path's ending.
        dtype: of the weights and images in the file; by default the model's.
        opset: version of ONNX's operators, such as 18 for an older runtime; by default that of
            the installed exporter.
        preprocess: whether a file takes bytes and gives probabilities.
        quantize: calibration images for INT8, normalised as the model takes them, such as some
            hundred of the training images; ONNX in single precision only.

    Returns:
        The path.

    Raises:
        CircuitError: this can't be exported (every reason is named), the file can't be written, or
            its logits differ from the model's by more than 1e-4·max(1, max|logit|); 2e-2 likewise
            in float16, 5e-2 in bfloat16.
    """
    target, ours = Path(path), cast(Any, model)
    if isinstance(model, nn.Module):
        ours, _ = plain_copy(uncompiled(model))
    with quiet():
        problems = list(_problems(ours, target, to, dtype, opset))
        problems += _deployment_problems(ours, _kind(target, to), dtype, preprocess, quantize)
    if problems:
        raise CircuitError("this can't be exported: " + "; ".join(problems) + ".")
    if isinstance(ours, SavedModel):
        ours.check_parts()
        ours = without_hooks(ours)
        ours.preprocessing = ours.fitting_preprocessing()
    if to in KINDS:
        with quiet():
            return write_folder(cast(Any, ours), target, to=cast(Any, to), dtype=dtype)
    ours = ours.to(device="cpu", dtype=dtype).requires_grad_(False)
    return write_file(ours, target, _kind(target, to), opset, preprocess, quantize)


def _kind(target: Path, to: str | None) -> str:
    return target.suffix.removeprefix(".").lower() if to is None else to


def _problems(
    model: object, target: Path, to: str | None, dtype: torch.dtype | None, opset: object
) -> Iterator[str]:
    """Every reason why this can't be exported."""
    kind = _kind(target, to)
    yield from _path_problems(target, kind, to)
    yield from _opset_problems(opset, kind)
    if kind == "onnx":
        yield from _missing_packages()
    if not isinstance(model, nn.Module) or not isinstance(
        getattr(model, "config", None), ViTConfig
    ):
        yield (
            f"the model is a {type(model).__name__}, expected a circuitvit.ViT; "
            "circuitvit.load_vit(model) makes one"
        )
    elif isinstance(model, SavedModel) and (altered := _altered(model)):
        yield altered
    elif dtype is not None and dtype not in SHARE:
        yield f"dtype is {dtype}, expected one of {tuple(SHARE)}"
    elif kind == "onnx" and (dtype or dtype_of(model)) not in ONNX_DTYPES:
        yield (
            f"onnxruntime runs no ViT in {dtype or dtype_of(model)}, "
            "give dtype=torch.float32 or torch.float16"
        )


def _deployment_problems(
    model: object, kind: str, dtype: torch.dtype | None, preprocess: object, quantize: object
) -> Iterator[str]:
    """Why preprocessing or INT8 can't be in the file."""
    if preprocess and kind not in FILES:
        yield "preprocess=True is for ONNX and pt2 files; leave it out for a folder"
    if preprocess and getattr(model, "preprocessing", None) is None:
        yield (
            "preprocess=True needs to know how images are normalised; assign "
            "cv.Preprocessing(mean=…, std=…) to vit.preprocessing"
        )
    if quantize is None:
        return
    if kind != "onnx":
        yield "quantize= is for ONNX files; leave it out, or give to='onnx'"
    if isinstance(model, SavedModel) and (dtype or dtype_of(model)) != torch.float32:
        yield "quantize= starts from single precision; give dtype=torch.float32"
    yield from image_problems("quantize", quantize)
    config: Any = getattr(model, "config", None)
    if isinstance(quantize, Tensor) and isinstance(config, ViTConfig):
        wanted = (config.channels, config.image_size, config.image_size)
        if tuple(quantize.shape[1:]) != wanted:
            yield f"quantize holds images of {tuple(quantize.shape[1:])}, the model's are {wanted}"


def _altered(model: SavedModel) -> str:
    """The changes to the model's parts; empty if it is plain."""
    try:
        model.check_parts()
    except CircuitError as cause:
        return str(cause).rstrip(".")
    return ""


def _path_problems(target: Path, kind: str, to: str | None) -> Iterator[str]:
    kinds, ending = FILES, _kind(target, None)
    if to in KINDS:
        return
    if to is not None and to not in kinds:
        yield f"to is {to!r}, expected 'onnx' or 'pt2', or for a folder 'timm' or 'transformers'"
    elif kind not in kinds:
        yield f"{target} ends in {target.suffix!r}, expected '.onnx' or '.pt2', or say to='onnx'"
    elif ending in kinds and ending != kind:
        yield f"{target} ends in {target.suffix!r}, but to is {to!r}; give one of the two"
    if target.is_dir():
        yield f"{target} is a folder, name a file"


def _opset_problems(opset: object, kind: str) -> Iterator[str]:
    """Why an opset can't be had; whether the exporter has it is seen in what it writes."""
    if opset is None:
        return
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < 1:
        yield f"opset is {opset!r}, expected a whole number such as 18"
    elif kind != "onnx":
        yield f"opset={opset} applies to ONNX files only; leave it out, or give to='onnx'"


def _missing_packages() -> Iterator[str]:
    missing = []
    for name in ONNX_PACKAGES:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        yield (
            f"ONNX needs {', '.join(missing)}, not installed here: pip install onnx onnxruntime "
            "onnxscript"
        )
