"""Predicts classes of pictures, with probabilities.

Pictures are read as `load_splits` reads them: turned as their camera was held, made grey or RGB,
resized, cropped to their middle and normalised as the model's preprocessing says.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, no_type_check, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitvit.charts.tables import html_table
from circuitvit.checks import is_whole
from circuitvit.errors import CircuitError, in_short, printable, reason_of, warn
from circuitvit.images.decoding.pixels import decode
from circuitvit.images.decoding.view_settings import Asked, asked_for
from circuitvit.images.image_table import Raw, Table
from circuitvit.preprocessing import Preprocessing, fitting
from circuitvit.torch_modes import evaluating, without_gradients

DECODED_AT_ONCE = 256
SHOWN = 20
"""Pictures in a representation."""
TOLD = 5
"""Problems in a message."""
_CHANNELS = (1, 3, 4)
_ENCODED = bytes | bytearray | memoryview


@dataclass(frozen=True, repr=False)
class Prediction(Sequence[tuple[str, float]]):
    """The prediction for one picture: a sequence of (class name, probability), best first.

    Attributes:
        picture: its path, or `picture 3`, counted from 0.
        labels: names of the best classes; their numbers as text, where the model knows no names.
        probabilities: of these classes, 0–1; those of all the model's classes add up to 1.
        classes: their places among the logits.
    """

    picture: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    classes: tuple[int, ...]

    @property
    def label(self) -> str:
        """The best class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Of the best class."""
        return self.probabilities[0]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: Any) -> Any:
        return tuple(zip(self.labels, self.probabilities, strict=True))[place]

    def __repr__(self) -> str:
        told = (f"{printable(name)} {share:z.1%}" for name, share in self)
        return f"{printable(self.picture)}: {', '.join(told)}"

    def _repr_html_(self) -> str:
        rows = [[name, f"{share:z.1%}"] for name, share in self]
        return html_table([[self.picture, "probability"], *rows])


@dataclass(frozen=True, repr=False)
class Predictions(Sequence[Prediction]):
    """The predictions for several pictures, in the order given.

    Attributes:
        each: one a picture.
    """

    each: tuple[Prediction, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The best class of each picture."""
        return tuple(one.label for one in self.each)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of the best class of each picture."""
        return tuple(one.probability for one in self.each)

    def __len__(self) -> int:
        return len(self.each)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> "Predictions": ...
    def __getitem__(self, place: int | slice) -> "Prediction | Predictions":
        return Predictions(self.each[place]) if isinstance(place, slice) else self.each[place]

    def table(self) -> list[list[str]]:
        """Header and rows as text, one a picture."""
        most = max((len(one) for one in self.each), default=0)
        header = ["picture", *(f"{number}." for number in range(1, most + 1))]
        cells = ([f"{name} {share:z.1%}" for name, share in one] for one in self.each)
        names = (one.picture for one in self.each)
        return [header, *([name, *row] for name, row in zip(names, cells, strict=True))]

    def __repr__(self) -> str:
        more = len(self.each) - SHOWN
        lines = [repr(one) for one in self.each[:SHOWN]]
        return "\n".join([*lines, *([f"… and {more} more pictures"] if more > 0 else [])])

    def _repr_html_(self) -> str:
        more = len(self.each) - SHOWN
        note = f"<p>… and {more} more pictures</p>" if more > 0 else ""
        return html_table(Predictions(self.each[:SHOWN]).table()) + note


@no_type_check  # it checks its own input, with words for people
@without_gradients
def predict(
    model: Any,
    pictures: Any,
    *,
    top: int = 5,
    batch: int = 64,
    pixel_range: tuple[float, float] | None = None,
    workers: int = 0,
) -> Prediction | Predictions:
    """The best classes of pictures; the arguments are those of `ViT.predict`.

    Args:
        model: a module from images to logits with `config` and `preprocessing`; it is left as it
            is.
        pictures: one or several.
        top: how many classes of each.
        batch: images at once.
        pixel_range: black and white of deep pictures.
        workers: threads that decode.

    Raises:
        CircuitError: a picture can't be read, or an argument is out of range; all such are named.
    """
    single, listed = _listed(pictures)
    raws, problems = _raws(listed)
    for name, value, least in (("top", top, 1), ("batch", batch, 1), ("workers", workers, 0)):
        if not is_whole(value) or value < least:
            problems.append(f"{name} is {in_short(value)}, expected a whole number ≥ {least}")
    known = _known(model)
    asked = asked_for(model, known or Preprocessing(), None, None, pixel_range)
    if problems := [*problems, *asked.problems]:
        raise CircuitError(f"these pictures can't be classified: {_some(problems)}.")
    names = known and known.class_names
    found, unread = list[Prediction](), list[str]()
    for start in range(0, len(raws), DECODED_AT_ONCE):
        images, lost = _images(raws[start : start + DECODED_AT_ONCE], start, asked, workers)
        unread += [f"{_named(listed[place], place)}: {reason}" for place, reason in lost.items()]
        if unread:  # the rest is only tried, so that all that can't be read are told at once
            continue
        best = _probabilities(model, images, batch).topk(min(top, model.config.classes))
        for place, (shares, classes) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True), start
        ):
            labels = tuple(names[c] if names else str(c) for c in classes)
            title = _title(listed[place], place)
            found.append(Prediction(title, labels, tuple(shares), tuple(classes)))
    if unread:
        raise CircuitError(
            f"{len(unread):,} of {len(raws):,} pictures can't be read: {_some(unread)}. Leave them "
            "out."
        )
    return found[0] if single else Predictions(tuple(found))


def _some(problems: Sequence[str]) -> str:
    """The first of the problems, each cut short, and how many more there are."""
    told = [printable(problem, most=320) for problem in problems[:TOLD]]
    more = len(problems) - TOLD
    return "; ".join([*told, *([f"and {more:,} more"] if more > 0 else [])])


def _known(model: Any) -> Preprocessing | None:
    """The model's preprocessing, as far as it fits; it warns of what is guessed or left out.

    Raises:
        CircuitError: it is something else.
    """
    known, gone = fitting(model.preprocessing, classes=model.config.classes)
    for note in gone:
        warn(f"the model: {note}. Classes are told by number.")
    if known is None:
        warn(
            "how this model's images were normalised is not known; mean and std 0.5 are taken. "
            "Assign cv.Preprocessing(mean=…, std=…, class_names=…) to vit.preprocessing."
        )
    return known


def _listed(pictures: Any) -> tuple[bool, list[Any]]:
    """The pictures, and whether it is a single one.

    Raises:
        CircuitError: there are none, or they are a tensor.
    """
    if isinstance(pictures, Tensor | Mapping):
        raise CircuitError(
            f"pictures are a {type(pictures).__name__}, expected paths, PIL images or uint8 arrays "
            "[height width channel], one or a list. Images that are normalised go to vit(images)."
        )
    single = _is_one(pictures)
    listed: list[Any] = [pictures] if single else [*pictures]
    if not listed:
        raise CircuitError("there are no pictures. Give at least one.")
    return single, listed


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim != 4
    one = isinstance(pictures, str | os.PathLike | _ENCODED) or hasattr(pictures, "read")
    return one or not isinstance(pictures, Iterable)


def _raws(pictures: Sequence[Any]) -> tuple[list[Raw], list[str]]:
    """The pictures as they are decoded, and what is wrong with them."""
    raws, problems = [], []
    for place, picture in enumerate(pictures):
        raw = _raw(picture)
        if isinstance(raw, str):
            problems.append(f"{_named(picture, place)} {raw}")
        else:
            raws.append(raw)
    return raws, problems


def _raw(picture: Any) -> Raw | str:
    """A picture as it is decoded, or what is wrong with it."""
    from PIL import Image

    if isinstance(picture, str | os.PathLike):
        path = os.path.expanduser(os.fspath(picture))
        if "://" in str(path):
            return "is a URL, and nothing is downloaded; fetch it first and give its path"
        if os.path.isdir(path):
            return "is a folder; give its files, such as sorted(Path(folder).glob('*.png'))"
        return {"path": os.fsdecode(path), "bytes": None}
    if isinstance(picture, Image.Image):
        return {"path": None, "bytes": None, "image": picture}
    if isinstance(picture, np.ndarray):
        return _array(picture)
    encoded = _content(picture) if hasattr(picture, "read") else picture
    if isinstance(encoded, _ENCODED):
        return {"path": None, "bytes": bytes(encoded)}
    if isinstance(encoded, str):
        return encoded
    return f"is a {type(picture).__name__}, expected a path, a PIL image or an array of uint8"


def _content(file: Any) -> bytes | str:
    """What a file holds from where it stands, where it is left again; or what is wrong with it."""
    try:
        place = file.tell() if file.seekable() else None
        content = file.read()
        if place is not None:
            file.seek(place)
    except (AttributeError, OSError, TypeError, ValueError) as cause:
        return f"is a file that can't be read: {reason_of(cause)}"
    if isinstance(content, str):
        return "is a file of text; open it by open(path, 'rb')"
    return content


def _array(array: np.ndarray) -> np.ndarray | str:
    """Bytes [height width channel], or what is wrong with them."""
    shaped = array[:, :, None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[2] not in _CHANNELS or not shaped.size:
        return (
            f"has the shape {array.shape}, expected [height width] or [height width channel] with "
            "1, 3 or 4 channels; array.transpose(1, 2, 0) puts channels last, and a stack of grey "
            "pictures needs a channel axis, array[..., None]"
        )
    if array.dtype != np.uint8:
        return f"is an array of {array.dtype}, expected uint8, 0 to 255; {_remedy(array)}"
    return shaped


def _remedy(array: np.ndarray) -> str:
    """The conversion of an array of another type to bytes."""
    if array.dtype == np.bool_:
        return "255 * array.astype('uint8') makes it of truth values"
    if np.issubdtype(array.dtype, np.floating):
        return "(255 * array).astype('uint8') makes it of floats in [0, 1]"
    if not np.issubdtype(array.dtype, np.integer):
        return "give one of numbers"
    least, most = int(array.min()), int(array.max())
    if least >= 0 and most <= 255:
        return "array.astype('uint8') makes it of these"
    return (
        f"it goes from {least} to {most}: give a grey one as PIL.Image.fromarray(array) with "
        "pixel_range=(black, white), or scale it to 0 to 255"
    )


def _title(picture: Any, place: int) -> str:
    named = isinstance(picture, str | os.PathLike)
    return os.fsdecode(os.fspath(picture)) if named else f"picture {place}"


def _named(picture: Any, place: int) -> str:
    return printable(_title(picture, place), most=120)


def _images(
    raws: Sequence[Raw], start: int, asked: Asked, workers: int
) -> tuple[Float[Tensor, "image channel height width"], dict[int, str]]:
    """Pictures as the model looks at them; and why others can't be read, by their places."""

    def read(places: np.ndarray) -> list[Raw]:
        return [raws[place - start] for place in places]

    count = start + len(raws)
    table = Table(np.zeros(count, dtype=np.int64), ("",), {"given": (count, read)})
    places = np.arange(start, count)
    found = decode(table, places, asked.look(table), workers=workers, what="pictures")
    unread = sorted({*range(len(raws))} - {*found.kept.tolist()})
    reasons = {
        start + place: line.removeprefix(f"{table.where(start + place, raws[place])}: ")
        for place, line in zip(unread, found.skipped, strict=True)
    }
    return asked.normalised(found.pixels) if not reasons else torch.empty(0, 1, 1, 1), reasons


def _probabilities(model: nn.Module, images: Tensor, batch: int) -> Float[Tensor, "image class"]:
    """Softmax of the logits of all images, on the CPU in double precision."""
    weights = next(model.parameters(), torch.zeros(()))  # an ONNX model has none
    with evaluating(model), torch.inference_mode():
        chunks = [model(part.to(weights)).double().cpu() for part in images.split(batch)]
    logits = torch.cat(chunks)
    if not bool(torch.isfinite(logits).all()):
        raise CircuitError(
            "the logits hold NaN or infinity. Look at the model's weights and at its "
            "preprocessing's mean and std."
        )
    return logits.softmax(dim=1)
