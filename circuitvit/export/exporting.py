"""Models for others: an ONNX file, a pt2 file, or a folder that timm or transformers reads.

A copy of the model is traced on the CPU with a batch of any size. What was written is read back,
onnxruntime and all, and compared with the model before it takes its place.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.export.exported_file import SHARE, dtype_of, quiet, write_file
from circuitvit.export.library_folder import KINDS, write_folder
from circuitvit.images.tensor_checks import image_problems
from circuitvit.measure.models.cost import uncompiled
from circuitvit.models.saved_model import SavedModel, without_hooks
from circuitvit.plain_weights import plain_copy
from circuitvit.torch_modes import in_default_modes

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
    """What was done to the model's parts; nothing if it is plain."""
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
