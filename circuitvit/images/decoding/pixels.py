"""From stored pictures to pixels of one size: resized and cropped as torchvision and timm do."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from circuitvit.errors import CircuitError, reason_of
from circuitvit.files.tensor_files import read_tensors, told_in, write_tensors
from circuitvit.images.decoding.pictures import open_picture, turned
from circuitvit.images.image_table import Raw, Table
from circuitvit.images.tensor_checks import fingerprint
from circuitvit.memory import memory_left
from circuitvit.preprocessing import Interpolation, Resize
from circuitvit.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image


_CHUNK = 256
_MODES = {1: "L", 3: "RGB"}
_MOST_PIXELS = 2**27
"""In a picture that is resized, before its middle is cut out."""


@dataclass(frozen=True)
class Look:
    """The settings that pixels depend on before normalisation.

    Attributes:
        image_size: side in pixels; None takes pictures as they are.
        resized_side: the side to resize to first, of which the middle is kept; likewise None.
        channels: 1 (grey) or 3 (RGB).
        interpolation: of the resizing.
        resize: `shortest` keeps the proportions, `squash` doesn't.
        pixel_range: the values that are black and white in pictures of more than 8 bits a channel;
            None where such pictures can't be read.
    """

    image_size: int | None
    resized_side: int | None
    channels: int
    interpolation: Interpolation
    resize: Resize
    pixel_range: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels, and what could not be read.

    Attributes:
        pixels: bytes, or floats in [0, 1] where they were stored so.
        kept: which of the positions asked for could be read [image], in order.
        skipped: a line for each of the others, `train image 17 (path): reason`.
    """

    pixels: Shaped[Tensor, "image channel height width"]
    kept: np.ndarray
    skipped: tuple[str, ...]


def decode(
    table: Table, places: np.ndarray, look: Look, *, workers: int = 0, what: str = "images"
) -> Decoded:
    """Decode the pictures at some positions; the number of threads changes nothing but the time.

    Raises:
        CircuitError: pictures have several sizes and `look` has none.
    """
    sheet, kept, skipped = _Sheet(len(places)), [], []
    work = partial(_pixels, look=look)
    with _threads(workers) as each, progress(what, len(places)) as advance, _quiet():
        for begin in range(0, len(places), _CHUNK):
            chunk = places[begin : begin + _CHUNK]
            raws = table.read(chunk)
            for place, (raw, pixels) in enumerate(zip(raws, each(work, raws), strict=True), begin):
                advance()
                if isinstance(pixels, np.ndarray):
                    sheet.add(pixels)
                    kept.append(place)
                    continue
                skipped.append(f"{table.where(int(places[place]), raw)}: {pixels}")
    return Decoded(sheet.whole(), np.array(kept, dtype=np.int64), tuple(skipped))


class _Sheet:
    """Room for all pixels, made when the first picture tells their shape and type."""

    def __init__(self, count: int) -> None:
        self.count, self.filled = count, 0
        self.pixels = np.empty((0, 1, 1, 1), dtype=np.uint8)
        self.shapes: set[tuple[int, ...]] = set()

    def add(self, pixels: np.ndarray) -> None:
        if not self.shapes:
            height, width, channels = pixels.shape
            _check_memory(self.count * pixels.nbytes, f"{self.count} images of {height}×{width}")
            self.pixels = np.empty((self.count, channels, height, width), dtype=pixels.dtype)
        self.shapes.add(pixels.shape[:2])
        if len(self.shapes) == 1:
            self.pixels[self.filled] = pixels.transpose(2, 0, 1)
            self.filled += 1

    def whole(self) -> Tensor:
        shapes = sorted(self.shapes)
        if len(shapes) > 1 or any(height != width for height, width in shapes):
            some = ", ".join(f"{height}×{width}" for height, width in shapes[:4])
            raise CircuitError(
                f"the images are {some} pixels high and wide, expected squares of one size. Give "
                "image_size: they are then resized and cropped to their middle."
            )
        return torch.from_numpy(self.pixels[: self.filled])


def _check_memory(size: int, what: str) -> None:
    free = memory_left()
    if size > free:
        raise CircuitError(
            f"{what} pixels take {size / 2**30:z.1f} GiB, and {free / 2**30:z.1f} GiB are free. "
            "Give a limit, or a smaller image_size."
        )


@contextmanager
def _threads(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    if workers < 1:
        yield map
        return
    with ThreadPoolExecutor(workers) as pool:
        yield pool.map


@contextmanager
def _quiet() -> Iterator[None]:
    """PIL warns of every odd tag of every file; what can't be read is told at the end."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


def _pixels(raw: Raw, look: Look) -> np.ndarray | str:
    """A picture as [height width channel]; or why it can't be read."""
    try:
        if isinstance(raw, np.ndarray) and raw.dtype != np.uint8:
            return _of_floats(raw, look)
        image = _opened(raw)
        if image.mode.startswith(("I", "F")):
            return _of_deep(image, look)
        if image.mode == "P":  # else the transparency of a palette gets lost with a warning
            image = image.convert("RGBA")
        image = _fitted(image.convert(_MODES[look.channels]), look)
    except Exception as cause:  # PIL's formats raise some dozen types at broken files
        return reason_of(cause)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    # With a range, some are floats; those of one set have to be of one type.
    return pixels if look.pixel_range is None else pixels.astype(np.float32) / 255


def _of_deep(image: "Image", look: Look) -> np.ndarray | str:
    """A picture of more than 8 bits a channel, scaled from the range that was given."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        return f"it holds pixels (mode {image.mode}) that are NaN or infinite"
    least, most = values.min(), values.max()
    told = f"its pixels (mode {image.mode}) go from {least:zg} to {most:zg}"
    if look.pixel_range is None:
        return (
            f"{told}, more than 8 bits a channel, whose range is not known; say it with "
            "pixel_range=(black, white), such as (0, 65535), or save the picture with 8 bits"
        )
    black, white = look.pixel_range
    if least < black or most > white:
        return f"{told}, beyond pixel_range ({black:zg}, {white:zg})"
    scaled = (values - black) / (white - black)
    return _of_floats(scaled.astype(np.float32)[:, :, None], look)


def _opened(raw: Raw) -> "Image":
    from PIL import Image

    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw[:, :, 0] if raw.shape[2] == 1 else raw)
    if raw and raw.get("image") is not None:
        return turned(raw["image"])
    data, path = (raw.get("bytes"), raw.get("path")) if raw else (None, None)
    if data is None and path is None:
        raise ValueError("there is no picture")
    if data is None and path is not None and os.path.isfile(path):
        with Path(path).open("rb") as file:  # PIL would leave open what it can't read
            return open_picture(file)
    if data is not None:
        return open_picture(io.BytesIO(data))
    if path is not None and "://" not in path:  # nor is a pipe read, which may never end
        raise ValueError("there is no such file")
    from datasets import Image as Feature

    # It reads paths inside archives and on the hub.
    return Feature().decode_example({"bytes": None, "path": path})


def _of_floats(array: np.ndarray, look: Look) -> np.ndarray:
    """Floats in [0, 1] take the same way, one channel at a time, and keep their precision."""
    from PIL import Image

    colours = array[:, :, :3] if array.shape[2] >= 3 else array[:, :, :1]
    if look.channels == 1 and colours.shape[2] == 3:
        red, green, blue = np.moveaxis(colours, 2, 0)[..., None]
        # Spelled out, since a matrix product rounds by where in memory its operands lie.
        colours = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
    colours = np.broadcast_to(colours, (*colours.shape[:2], look.channels))
    planes = [np.ascontiguousarray(colours[:, :, i]) for i in range(look.channels)]
    fitted = [np.asarray(_fitted(Image.fromarray(plane), look)) for plane in planes]
    return np.stack(fitted, axis=2).clip(0, 1)


def _fitted(image: "Image", look: Look) -> "Image":
    """An image resized and cropped to its middle, on the pixel as torchvision's transforms do."""
    from PIL.Image import Resampling

    side, keep = look.resized_side, look.image_size
    if side is None or keep is None:
        return image
    width, height = image.size
    short = min(width, height)
    size = (side, side)
    if look.resize == "shortest":
        size = (int(side * width / short), int(side * height / short))
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(
            f"its {width}×{height} pixels would be resized to {size[0]}×{size[1]}, too many; cut "
            "it, or ask for smaller images"
        )
    if image.size != size:
        image = image.resize(size, Resampling[look.interpolation.upper()])
    left, top = round((image.width - keep) / 2), round((image.height - keep) / 2)
    return image.crop((left, top, left + keep, top + keep))


_FORMAT = 1


def remembered(
    folder: str | os.PathLike[str],
    table: Table,
    places: np.ndarray,
    look: Look,
    decode: Callable[[], Decoded],
) -> Decoded:
    """What `decode` gives, from the folder if it is there whole, else made and written there.

    Raises:
        CircuitError: the folder can't be written to.
    """
    path = Path(folder) / f"{_key(table, places, look)}.safetensors"
    found = _read(path)
    if found is None:
        found = decode()
        _write(path, found)
    return found


def _key(table: Table, places: np.ndarray, look: Look) -> str:
    """Of the pictures' contents and order, what is done to them, and what does it."""
    import PIL

    parts = {
        "format": _FORMAT,
        "pillow": PIL.__version__,
        "pictures": table.fingerprint(places),
        # Where a picture stands is part of what is said about it if it can't be read.
        "places": hashlib.sha256(places.astype("<i8").tobytes()).hexdigest(),
        "sizes": list(table.sizes.items()),
        "look": asdict(look),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Decoded | None:
    """The file's pixels; None where there is none, or it is damaged."""
    from safetensors import SafetensorError

    try:
        tensors, said = read_tensors(path)
        skipped = told_in(said, "skipped")
    except (OSError, SafetensorError, ValueError):
        return None
    if not {"pixels", "kept"} <= set(tensors) or not _are_texts(skipped):
        return None
    pixels, kept = tensors["pixels"], tensors["kept"]
    if said.get("fingerprint") != fingerprint(pixels, kept):
        return None
    return Decoded(pixels, kept.numpy(), tuple(skipped))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _write(path: Path, found: Decoded) -> None:
    kept = torch.from_numpy(found.kept)
    said = {
        "fingerprint": fingerprint(found.pixels, kept),
        "skipped": json.dumps(found.skipped),
    }
    write_tensors(path, {"pixels": found.pixels, "kept": kept}, said)
