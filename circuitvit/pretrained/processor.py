"""`preprocessor_config.json` of transformers as a `Preprocessing`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files import read_json
from circuitvit.preprocessing import Preprocessing

FILE = "preprocessor_config.json"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_KEEP_PROPORTIONS = ("CLIP", "Bit", "ConvNext", "ChineseCLIP", "Levit")
"""Processors to which a bare number is the shortest side; to others it is both."""


def processor_of(source: str) -> tuple[Preprocessing | None, str | None]:
    """What the image processor in a folder, or in the hub's cache, does; None if there is none.

    One that can't be understood is none, beside the reason.
    """
    path = Path(source) / FILE if source else None
    if path is None or not path.is_file():
        path = _cached(source)
    if path is None:
        return None, None
    try:
        return as_preprocessing(read_json(path, what="image processor")), None
    except CircuitError as cause:
        return None, f"the image processor {path} is left out: {cause}"


def _cached(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if repository.count("/") != 1:
        return None
    try:
        found = try_to_load_from_cache(repository, FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def as_preprocessing(values: Any) -> Preprocessing:
    """The fields of an image processor in our words.

    Mean and deviation are of pixels in [0, 1] here; a processor that rescales otherwise, or not at
    all, has those of other numbers.

    Raises:
        CircuitError: a field is wrong, or means something that a `Preprocessing` can't say.
    """
    problems = _problems(values)
    if problems:
        raise CircuitError("; ".join(problems) + ".")
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    size, crop = values.get("size"), values.get("crop_size")
    share = 1.0
    if values.get("do_center_crop") and values.get("do_resize", True) and _side(size):
        share = min(1.0, (_side(crop) or _side(size)) / _side(size))
    normalizes = values.get("do_normalize", True)
    mean, std = values.get("image_mean") or 0.5, values.get("image_std") or 0.5
    brightest = 255 * _factor(values)
    return Preprocessing(
        mean=_divided(mean if normalizes else 0.0, brightest),
        std=_divided(std if normalizes else 1.0, brightest),
        interpolation=RESAMPLE[values.get("resample", 2)],  # pyright: ignore[reportArgumentType]
        resize="squash" if _squashes(size, kind) else "shortest",
        crop=share,
    )


def _problems(values: Any) -> list[str]:
    """Why the fields can't be read."""
    if not isinstance(values, Mapping):
        return [f"it holds a {type(values).__name__}, expected named fields"]
    flags = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "rescale_offset")
    found = [
        f"{name} is {values[name]!r}, expected true or false"
        for name in flags
        if not isinstance(values.get(name), bool | None)
    ]
    found += [
        f"{name} is {values[name]!r}, expected one number a channel"
        for name in ("image_mean", "image_std")
        if not all(map(_is_number, _each(values.get(name))))
    ]
    found += [
        f"{name} is {values[name]!r}, expected pixels"
        for name in ("size", "crop_size")
        if not all(_is_number(side) and side >= 1 for side in _each(values.get(name)))
    ]
    factor, resample = values.get("rescale_factor", 1 / 255), values.get("resample", 2)
    if not _is_number(factor) or factor <= 0:
        found.append(f"rescale_factor is {factor!r}, expected a number > 0")
    if not isinstance(resample, int) or resample not in RESAMPLE:
        found.append(f"resample is {resample!r}, expected one of {RESAMPLE}")
    if values.get("rescale_offset") is True:
        found.append("rescale_offset shifts pixels below 0")
    return found


def _each(value: Any) -> list[Any]:
    """The numbers in a field, which may have names, be a list, or be missing."""
    if isinstance(value, Mapping):
        return [number for number in value.values() if number is not None]
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(value)


def _factor(values: Mapping[str, Any]) -> float:
    """What bytes are multiplied by."""
    return values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0


def _divided(value: Any, brightest: float) -> tuple[float, ...]:
    """In units of the brightest pixel's value, which is 1 but for rounding as a rule."""
    scale = 1.0 if math.isclose(brightest, 1.0, rel_tol=1e-9) else brightest
    return tuple(number / scale for number in _each(value))


def _squashes(size: Any, kind: str) -> bool:
    if isinstance(size, Mapping):
        return "shortest_edge" not in size
    return not kind.startswith(_KEEP_PROPORTIONS)


def _side(size: Any) -> int:
    """The side in pixels, or 0."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height") or 0
    if isinstance(size, list | tuple):
        size = size[0]
    return int(size or 0)
