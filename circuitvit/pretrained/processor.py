"""`preprocessor_config.json` of transformers as a `Preprocessing`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitvit.files import read_json
from circuitvit.preprocessing import Preprocessing

FILE = "preprocessor_config.json"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_KEEP_PROPORTIONS = ("CLIP", "Bit", "ConvNext", "ChineseCLIP", "Levit")
"""Processors to which a bare number is the shortest side; to others it is both."""


def processor_of(source: str) -> Preprocessing | None:
    """What the image processor in a folder, or in the hub's cache, does; None if there is none."""
    path = Path(source) / FILE if source else None
    if path is None or not path.is_file():
        path = _cached(source)
    return None if path is None else as_preprocessing(read_json(path, what="image processor"))


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


def as_preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    """The fields of an image processor in our words."""
    normalizes = values.get("do_normalize", True)
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    size, crop = values.get("size"), values.get("crop_size")
    squash = _squashes(size, kind)
    share = 1.0
    if values.get("do_center_crop") and values.get("do_resize", True) and _side(size):
        share = min(1.0, (_side(crop) or _side(size)) / _side(size))
    return Preprocessing(
        mean=tuple(values.get("image_mean") or (0.5,)) if normalizes else (0.0,),
        std=tuple(values.get("image_std") or (0.5,)) if normalizes else (1.0,),
        interpolation=RESAMPLE.get(values.get("resample", 2), "bicubic"),  # pyright: ignore[reportArgumentType]
        resize="squash" if squash else "shortest",
        crop=share,
    )


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
