"""Reads image processors of transformers from their files, as a `Preprocessing`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitvit.errors import CircuitError
from circuitvit.files import read_json
from circuitvit.preprocessing import Preprocessing
from circuitvit.pretrained.libraries.reading import imported

FILE = "preprocessor_config.json"
NESTED = "processor_config.json"
"""Where version 5 keeps the image processor of a processor of several things; it comes first."""
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_FILTERS = {name: name for name in RESAMPLE.values()} | {"antialias": "lanczos"}
"""Pillow's names, with the one it had for Lanczos."""
_READ = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale",
    "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std",
    "default_to_square", "include_top",
)  # fmt: skip
_IDLE = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "data_format",
    "input_data_format", "return_tensors", "device", "disable_grouping", "do_convert_rgb",
    "do_reduce_labels", "model_input_names", "num_channels", "transformers_version", "use_fast",
    "backend", "name_or_path",
}  # fmt: skip
"""Keys that change no pixel of a picture in RGB."""
_KEEP_PROPORTIONS = ("CLIP", "Bit", "ConvNext", "ChineseCLIP", "Levit", "PoolFormer")
"""Processors to which a bare number is the shortest side; to others it is both."""
_WARPS_FROM = 384
"""ConvNeXt's processor crops below this side, and squeezes whole pictures from it on."""
_LEVIT = 256 / 224


@dataclass(frozen=True)
class Processor:
    """The image processor found beside a model.

    Attributes:
        seen: what it does to pictures; None where there is none, or it can't be understood.
        notes: what was left out.
        guessed: the same as sentences, where a picture may come out otherwise.
    """

    seen: Preprocessing | None = None
    notes: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def processor_of(source: str) -> Processor:
    """The image processor in a folder, or in the hub's cache; empty if there is none."""
    path = None
    try:
        for name in (NESTED, FILE):
            path = _file(source, name)
            if path is None:
                continue
            values = read_json(path, what="image processor", finite=False)
            if name == NESTED:
                values = values.get("image_processor") if isinstance(values, Mapping) else None
                if not isinstance(values, Mapping):
                    continue
            return _understood(path, values)
    except CircuitError as cause:
        return _left_out(path, cause)
    return Processor()


def _understood(path: Path, values: Any) -> Processor:
    """The fields of a processor that are understood; the others are named.

    Raises:
        CircuitError: mean or deviation, or all of it, isn't understood.
    """
    bad = _problems(values)
    if {"", "image_mean", "image_std"} & set(bad):
        raise CircuitError("; ".join(bad.values()) + ".")
    kept = {name: value for name, value in values.items() if name not in bad}
    seen, unread = as_preprocessing(kept), [*bad.values(), *not_understood(kept)]
    if not unread:
        return Processor(seen)
    note = f"of the image processor {path}, these are left out: {', '.join(unread)}"
    return Processor(seen, (note,), (f"{note}, so pictures may be seen otherwise.",))


def _left_out(path: Path | None, cause: CircuitError) -> Processor:
    reason = str(cause).rstrip(".")
    return Processor(
        None,
        (f"the image processor {path} is left out: {reason}",),
        (
            "how this model's images were normalised is not known: the image processor "
            f"{path} is not understood ({reason}). Mend the file, or give "
            "preprocessing=cv.Preprocessing(mean=..., std=...) to load_vit.",
        ),
    )


def _file(source: str, name: str) -> Path | None:
    """A file in a folder, or of a repository in the hub's cache."""
    path = Path(source) / name if source else None
    return path if path is not None and path.is_file() else _cached(source, name)


def _cached(repository: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if repository.count("/") != 1:
        return None
    try:
        found = try_to_load_from_cache(repository, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def as_preprocessing(values: Any) -> Preprocessing:
    """The fields of an image processor in our words.

    Mean and deviation are of pixels in [0, 1] here; a processor that rescales otherwise, or not at
    all, has those of other numbers. Fields that are not given are as its class has them.

    Raises:
        CircuitError: a field is wrong, or means something that a `Preprocessing` can't say.
    """
    problems = _problems(values)
    if problems:
        raise CircuitError("; ".join(problems.values()) + ".")
    kind, values = _kind(values), _with_defaults(values)
    share, squash = _cropping(values, kind)
    normalizes = values.get("do_normalize", True)
    mean, std = values.get("image_mean") or 0.5, values.get("image_std") or 0.5
    brightest = 255 * _factor(values)
    again = kind.startswith("EfficientNet") and values.get("include_top", True)
    divisions = bool(normalizes) + bool(again)
    return Preprocessing(
        mean=_divided(mean if normalizes else 0.0, brightest),
        std=_divided([number**divisions for number in _each(std)], brightest),
        interpolation=_resampling(values.get("resample", 2)),  # pyright: ignore[reportArgumentType]
        resize="squash" if squash else "shortest",
        crop=share,
    )


def not_understood(values: Mapping[str, Any]) -> list[str]:
    """Fields with values that may change pictures in a way that a `Preprocessing` can't say."""
    pads = values.get("do_pad")
    found = [
        f"{name}={value!r}"
        for name, value in values.items()
        if name not in _READ and name not in _IDLE and not name.startswith("_")
        if value not in (None, False, {}, [], "") and (pads or not name.startswith("pad_"))
    ]
    if values.get("crop_pct") is not None and not _takes_share(_kind(values)):
        found.append(f"crop_pct={values['crop_pct']!r}, which a {_kind(values)} doesn't read")
    for name in ("size", "crop_size"):
        sides = values.get(name)
        if isinstance(sides, Mapping) and not _is_square(sides):
            found.append(f"{name}={dict(sides)!r}, which is not a square")
    return found


def _is_square(sides: Mapping[str, Any]) -> bool:
    given = {name: side for name, side in sides.items() if side is not None}
    return set(given) == {"shortest_edge"} or (
        set(given) == {"height", "width"} and given["height"] == given["width"]
    )


def _kind(values: Mapping[str, Any]) -> str:
    """The name of its class, as version 5 has it."""
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
    name = str(kind).removesuffix("Fast").removesuffix("Pil")
    return name.replace("FeatureExtractor", "ImageProcessor")


def _class_of(kind: str) -> Any:
    return getattr(imported("transformers"), kind, None) if kind else None


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    cls = _class_of(_kind(values))
    defaults = {name: getattr(cls, name, None) for name in _READ}
    known = {name: value for name, value in defaults.items() if value is not None}
    if any(name in values for name in ("size", "crop_pct")):
        known.pop("default_to_square", None)  # as `_squashes` knows it
    return {**known, **values}


def _takes_share(kind: str) -> bool:
    """Whether a class reads `crop_pct`; one that is not known is believed to."""
    cls = _class_of(kind)
    return cls is None or hasattr(cls, "crop_pct")


def _cropping(values: Mapping[str, Any], kind: str) -> tuple[float, bool]:
    """The share of the resized side that is kept, and whether pictures are squeezed."""
    size, crop = values.get("size"), values.get("crop_size")
    side, middle = _side(size), _side(crop)
    squash = _squashes(values, kind)
    if not values.get("do_resize", True) or not side:
        return 1.0, squash
    crops, share = values.get("do_center_crop"), values.get("crop_pct")
    if share is not None and _takes_share(kind):
        if not crops:  # ConvNeXt's
            return (1.0, True) if side >= _WARPS_FROM else (min(1.0, float(share)), False)
        return min(1.0, (middle or side) * float(share) / side), False
    if kind.startswith("Levit") and not squash:
        side *= _LEVIT
    return min(1.0, (middle or side) / side) if crops else 1.0, squash


def _problems(values: Any) -> dict[str, str]:
    """Why fields can't be read, by their names; under no name why none of them can."""
    if not isinstance(values, Mapping):
        return {"": f"it holds a {type(values).__name__}, expected named fields"}
    flags = (
        "do_resize", "do_center_crop", "do_rescale", "do_normalize", "rescale_offset",
        "include_top",
    )  # fmt: skip
    expected = dict.fromkeys(flags, "true or false")
    expected |= dict.fromkeys(("image_mean", "image_std"), "one number a channel")
    expected |= dict.fromkeys(("size", "crop_size"), "pixels")
    expected |= {"rescale_factor": "a number > 0", "crop_pct": "a share > 0"}
    expected["resample"] = f"one of {RESAMPLE}, by number or name"
    found = {
        name: f"{name} is {values[name]!r}, expected {what}"
        for name, what in expected.items()
        if values.get(name) is not None and not _is_right(name, values[name])
    }
    if values.get("rescale_offset") is True:
        found["rescale_offset"] = "rescale_offset=True, which shifts pixels below 0"
    return found


def _is_right(name: str, value: Any) -> bool:
    if name in ("image_mean", "image_std"):
        return all(map(_is_number, _each(value)))
    if name in ("size", "crop_size"):
        return all(_is_number(side) and side >= 1 for side in _each(value))
    if name in ("rescale_factor", "crop_pct"):
        return _is_number(value) and value > 0
    if name == "resample":
        return _resampling(value) is not None
    return isinstance(value, bool)


def _resampling(value: Any) -> str | None:
    """The filter of a number of Pillow's or of a name, also with its class; None for another."""
    if isinstance(value, int) and not isinstance(value, bool):
        return RESAMPLE.get(value)
    name = str(value).rpartition(".")[2].strip().lower()
    return RESAMPLE.get(int(name)) if name.isdecimal() else _FILTERS.get(name)


def _each(value: Any) -> list[Any]:
    """The numbers in a field, which may have names, be a list, or be missing."""
    if isinstance(value, Mapping):
        return [number for number in value.values() if number is not None]
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(value)


def _factor(values: Mapping[str, Any]) -> float:
    """The factor that bytes are multiplied by."""
    return values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0


def _divided(value: Any, brightest: float) -> tuple[float, ...]:
    """In units of the brightest pixel's value, which is 1 but for rounding as a rule."""
    scale = 1.0 if math.isclose(brightest, 1.0, rel_tol=1e-9) else brightest
    return tuple(number / scale for number in _each(value))


def _squashes(values: Mapping[str, Any], kind: str) -> bool:
    size = values.get("size")
    if isinstance(size, Mapping):
        return "shortest_edge" not in size
    if isinstance(values.get("default_to_square"), bool):
        return values["default_to_square"]
    return not kind.startswith(_KEEP_PROPORTIONS)


def _side(size: Any) -> int:
    """The side in pixels, or 0."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height") or 0
    if isinstance(size, list | tuple):
        size = size[0] if size else 0
    return int(size or 0)
