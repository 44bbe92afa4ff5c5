"""Recognises picture files, and says why one can't be read.

A file whose ending Pillow knows counts as a picture. What other files are, their first bytes say:
pictures come without an ending or with a wrong one, and what is no picture lies beside them.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuitvit.errors import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image

FileKind = Literal["picture", "unreadable", "stranger"]
"""What Pillow may read; a picture that it can't; and what is none."""

_HEAD = 512
_PREFIX = 16
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG"}
"""Formats that Pillow names but doesn't read; and PostScript, a program that it would run."""

_MOST_SIDE = 65_535
"""Pixels: the most that a JPEG has. A picture of one row decodes to gigabytes once it is resized
so that its short side fits."""

_MUCH = 128 * 2**20
_MOST_PIXELS_A_BYTE = 200
"""In a picture that takes more than `_MUCH` bytes when decoded: a photograph has less than 50, and
a JPEG of one colour 170."""

_RAW = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef",
    ".raf", ".rw2", ".srw", ".x3f",
))  # fmt: skip
"""Cameras' raw files: Pillow takes some for a TIFF and gives their thumbnail."""

_OTHERS = frozenset((
    ".avif", ".avifs", ".eps", ".heic", ".heics", ".heif", ".hif", ".jxl", ".ps", ".svg", ".svgz",
    *_RAW,
))  # fmt: skip
"""Endings of pictures that Pillow doesn't know, or not in each of its versions."""

_CONVERT = "convert it to PNG or JPEG"
_HEIC = f"it is a HEIC picture, which Pillow can't read; {_CONVERT}, or register pillow_heif first"
_RAW_FILE = f"it is a camera's raw file, which Pillow can't read; {_CONVERT}"
_BRANDS = {
    **dict.fromkeys(("heic", "heix", "hevc", "heim", "heis", "mif1", "msf1"), _HEIC),
    **dict.fromkeys(
        ("avif", "avis"),
        f"it is an AVIF picture, which this Pillow can't read; {_CONVERT}, or update Pillow",
    ),
    "crx ": _RAW_FILE,
}
_JXL = f"it is a JPEG XL picture, which Pillow can't read; {_CONVERT}"
_SVG = f"it is an SVG drawing, which has no pixels; {_CONVERT}"
_POSTSCRIPT = f"it is PostScript, a program, which is not run; {_CONVERT}"


@cache
def picture_endings() -> frozenset[str]:
    """Endings, in lower case, of what Pillow reads."""
    from PIL import Image

    known = Image.registered_extensions().items()  # also loads all of Pillow's formats
    return frozenset(
        ending for ending, form in known if form in Image.OPEN and form not in _NO_PICTURES
    )


def file_kind(path: Path) -> tuple[FileKind, str]:
    """The kind of a file, and for an unreadable picture the reason.

    Only a file with an ending that says nothing is opened, and of it only the first bytes are read
    unless they look like a picture.
    """
    ending = path.suffix.lower()
    if ending in _RAW:
        return "unreadable", _RAW_FILE
    if ending in picture_endings():
        return "picture", ""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as cause:
        return ("unreadable" if ending in _OTHERS else "stranger"), reason_of(cause)
    if _looks_like_a_picture(head) and _opens(path):
        return "picture", ""
    known = _picture_that_pillow_lacks(head)
    if known is None and ending in _OTHERS:
        known = _other_content(head) or "Pillow can't identify it"
    return ("stranger", "") if known is None else ("unreadable", known)


def open_picture(file: Any) -> "Image":
    """The picture in a file, turned as its camera was held.

    Raises:
        ValueError: it can't be read; the message says what the file is instead, or that it claims
            more pixels than a picture has.
        Exception: some dozen other types, by Pillow's formats, at broken files.
    """
    from PIL import Image, UnidentifiedImageError

    picture_endings()  # loads the formats
    known = [name for name in Image.OPEN if name not in _NO_PICTURES]
    try:
        image = Image.open(file, formats=known)
    except UnidentifiedImageError as cause:
        file.seek(0)
        head = file.read(_HEAD)
        told = _picture_that_pillow_lacks(head) or _other_content(head)
        raise ValueError(told or "it is no picture that Pillow can identify") from cause
    _check_size(image, file)
    image.load()
    _check_size(image, file)  # an icon's file holds pictures of sizes that it doesn't tell before
    return turned(image)


def turned(image: "Image") -> "Image":
    """The picture turned as its camera was held; itself where it says nothing of that."""
    from PIL import ImageOps

    oriented = image.getexif().get(0x0112) is not None  # Orientation
    return ImageOps.exif_transpose(image) if oriented else image


def _check_size(image: "Image", file: Any) -> None:
    """Refuse what takes far more memory than its file, before it does."""
    width, height = image.size
    if max(width, height) > _MOST_SIDE:
        raise ValueError(
            f"it is {width}×{height} pixels, expected at most {_MOST_SIDE} a side; cut it"
        )
    at = file.tell()
    size = file.seek(0, 2)
    file.seek(at)
    pixels, deep = width * height, image.mode.startswith(("I", "F"))
    if pixels * (24 if deep else 4) > _MUCH and pixels > _MOST_PIXELS_A_BYTE * size:
        raise ValueError(
            f"it claims {width}×{height} pixels in a file of {size} bytes, as no photograph does; "
            "scale it down"
        )


def _looks_like_a_picture(head: bytes) -> bool:
    from PIL import Image

    picture_endings()  # loads the formats
    checks = [check for name, (_, check) in Image.OPEN.items() if name not in _NO_PICTURES]
    # No picture is shorter, and the checks rely on it. One that gives a text says why a picture
    # can't be read here.
    whole = len(head) >= _PREFIX
    return whole and any(check is not None and check(head[:_PREFIX]) is True for check in checks)


def _opens(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.format not in _NO_PICTURES
    except Exception:  # Pillow's formats raise some dozen types at what is none of theirs
        return False


def _picture_that_pillow_lacks(head: bytes) -> str | None:
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12].decode("latin-1"))
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _JXL
    if head.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return _POSTSCRIPT
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<svg") or (
        start.startswith((b"<?xml", b"<!doctype")) and b"<svg" in start
    ):
        return _SVG
    return None


def _other_content(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "the file is empty"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, as a failed download leaves; fetch the picture again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; `git lfs pull` fetches the picture"
    if head[4:8] == b"ftyp":
        return "it is a video, not a picture"
    for mark, what in ((b"%pdf", "a PDF document"), (b"pk\x03\x04", "a zip archive")):
        if start.startswith(mark):
            return f"it is {what}, not a picture"
    return None
