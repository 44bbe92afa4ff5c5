"""Models for others: an ONNX file, a pt2 file, or a folder that timm or transformers reads.

A copy of the model is traced on the CPU with a batch of any size. What was written is read back,
onnxruntime and all, and compared with the model before it takes its place.
"""

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import ExportedProgram

from circuitvit.config import ViTConfig
from circuitvit.errors import CircuitError
from circuitvit.files import replacing
from circuitvit.measure.cost import uncompiled
from circuitvit.pretrained.writing import KINDS, write_folder
from circuitvit.torch_modes import in_default_modes

Format = Literal["onnx", "pt2", "timm", "transformers"]
FILES = ("onnx", "pt2")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_DTYPES = (torch.float32, torch.float16)  # onnxruntime has no convolution in others
TRACED = 3
"""Images in the traced batch; torch.export would take a batch of 1 for a constant."""
SHARE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference to the model, by dtype, in units of the largest logit or 1."""


@in_default_modes
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: Format | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model as one ONNX or pt2 file, or as a folder of timm or transformers.

    A folder of `timm` is read by `timm.create_model("local-dir:FOLDER", pretrained=True)`, one of
    `transformers` by `AutoModelForImageClassification.from_pretrained("FOLDER")`, where the shape
    allows it; preprocessing and class names go along. Files take a batch of any size.

    The model is copied and traced in eval mode, on the CPU. In ONNX the input is called `images`,
    the output `logits`; `torch.export.load(path).module()` gives a pt2 file back as a module. The
    file is compared with the model on 3 seeded normal images and on 1 before it is put in place.

    Args:
        model: a `ViT`, or another module from images to logits whose `config` is a `ViTConfig`;
            also after `torch.compile`.
        path: the file to write, or the folder.
        to: `onnx`, which needs `circuitvit[onnx]`, `pt2`, `timm` or `transformers`; by default the
            path's ending.
        dtype: of the weights and images in the file; by default the model's.

    Returns:
        The path.

    Raises:
        CircuitError: this can't be exported (every reason is named), the file can't be written, or
            its logits differ from the model's by more than 1e-4·max(1, max|logit|); 2e-2 likewise
            in float16, 5e-2 in bfloat16.
    """
    target, plain = Path(path), uncompiled(model) if isinstance(model, nn.Module) else model
    if to in KINDS and (dtype is None or dtype in SHARE):
        with _quiet():
            return write_folder(cast(Any, plain), target, to=cast(Any, to), dtype=dtype)
    with _quiet():
        problems = list(_problems(plain, target, to, dtype))
    if problems:
        raise CircuitError("this can't be exported: " + "; ".join(problems) + ".")
    onnx = _kind(target, to) == "onnx"
    ours = copy.deepcopy(plain).to(device="cpu", dtype=dtype).eval().requires_grad_(False)
    images = _images(ours)
    with _quiet(), replacing(target) as beside:
        program = _traced(ours, images)
        (_write_onnx if onnx else _write_pt2)(program, beside)
        batches = (images, images[:1])
        _compare(ours, batches, (_run_onnx if onnx else _run_pt2)(beside, batches))
    return target


def _kind(target: Path, to: str | None) -> str:
    return target.suffix.removeprefix(".").lower() if to is None else to


def _problems(
    model: object, target: Path, to: str | None, dtype: torch.dtype | None
) -> Iterator[str]:
    """Every reason why this can't be exported."""
    kind = _kind(target, to)
    yield from _path_problems(target, kind, to)
    if kind == "onnx":
        yield from _missing_packages()
    if not isinstance(model, nn.Module) or not isinstance(
        getattr(model, "config", None), ViTConfig
    ):
        yield (
            f"the model is a {type(model).__name__}, expected a circuitvit.ViT; "
            "circuitvit.load_vit(model) makes one"
        )
    elif dtype is not None and dtype not in SHARE:
        yield f"dtype is {dtype}, expected one of {tuple(SHARE)}"
    elif kind == "onnx" and (dtype or _dtype(model)) not in ONNX_DTYPES:
        yield (
            f"onnxruntime runs no ViT in {dtype or _dtype(model)}, "
            "give dtype=torch.float32 or torch.float16"
        )


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


def _dtype(model: nn.Module) -> torch.dtype:
    return next(item.dtype for item in model.state_dict().values() if item.is_floating_point())


def _images(model: nn.Module) -> Float[Tensor, "image channel height width"]:
    """Seeded normal images of the model's shape and dtype."""
    config: Any = model.config
    shape = (TRACED, config.channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(_dtype(model))


def _traced(model: nn.Module, images: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    except Exception as cause:  # torch.export raises what it likes
        raise CircuitError(
            f"torch.export can't trace this {type(model).__name__}: {_first_line(cause)}. "
            "Its forward may use nothing but tensor operations that heed no value."
        ) from cause


def _write_pt2(program: ExportedProgram, beside: Path) -> None:
    with beside.open("wb") as file:
        torch.export.save(program, file)


def _write_onnx(program: ExportedProgram, beside: Path) -> None:
    names: Any = {"input_names": ["images"], "output_names": ["logits"]}
    try:
        made = torch.onnx.export(
            program, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, **names
        )
        assert made is not None
        made.save(beside, external_data=False)
    except Exception as cause:  # neither exporter has an exception of its own for all it refuses
        raise CircuitError(
            f"this model can't be written as ONNX: {_first_line(cause)}. Try to='pt2'."
        ) from cause


def _run_pt2(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    with torch.no_grad():
        return [module(batch) for batch in batches]


def _run_onnx(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
        results = [session.run(None, {"images": batch.numpy()})[0] for batch in batches]
    except Exception as cause:
        raise CircuitError(
            f"onnxruntime can't run what was exported: {_first_line(cause)}. Try to='pt2'."
        ) from cause
    return [torch.from_numpy(result) for result in results]


@torch.no_grad()
def _compare(model: nn.Module, batches: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Refuse a file whose logits are not the model's."""
    error, largest = 0.0, 1.0
    for batch, logits in zip(batches, found, strict=True):
        expected = model(batch).double()
        if not bool(torch.isfinite(expected).all()):
            raise CircuitError(
                f"the model's logits hold NaN or infinity in {batch.dtype}, so the file can't be "
                "compared with it. Look at its weights, or give another dtype."
            )
        error = max(error, float((logits.double() - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    allowed = SHARE[batches[0].dtype] * largest
    if not error <= allowed:
        raise CircuitError(
            f"the exported file's logits differ from the model's by {error:.2g}, allowed are "
            f"{allowed:.2g}. It is not kept; please report this with the model's config.json."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their progress and on what is deprecated in them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(cause: Exception) -> str:
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0].rstrip(".")
