"""The folder `tiny-imagenet-200`, as its makers packed it."""

from pathlib import Path

from circuitvit.errors import CircuitError
from circuitvit.images.image_table import Table, files_table

_ANNOTATIONS = Path("val") / "val_annotations.txt"


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder is laid out as `tiny-imagenet-200` is: `train/<wnid>/images/…`."""
    marked = (folder / "wnids.txt").is_file() or (folder / _ANNOTATIONS).is_file()
    return marked and any(folder.glob("train/*/images"))


def tiny_imagenet_table(folder: Path) -> Table:
    """Its training and validation images; the test images have no labels and are left out.

    The class names are the wnids, as in the copies on the hub.

    Raises:
        CircuitError: there are no training images, or a line of the annotations is wrong.
    """
    names = sorted(
        place.name
        for place in (folder / "train").iterdir()
        if place.is_dir() and not place.name.startswith(".")
    )
    train = [
        (path, name)
        for name in names
        for path in sorted((folder / "train" / name).glob("images/*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not train:
        raise CircuitError(f"{folder / 'train'} holds no images. Unpack the archive once more.")
    splits = {"train": train}
    if (folder / _ANNOTATIONS).is_file():
        splits["validation"] = _annotated(folder, set(names))
    return files_table(splits, names)


def _annotated(folder: Path, known: set[str]) -> list[tuple[Path, str]]:
    file = folder / _ANNOTATIONS
    rows, wrong = [], []
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in known or Path(fields[0]).name != fields[0]:
            wrong.append(f"{number} ({line[:40]!r})")
        else:
            rows.append((file.parent / "images" / fields[0], fields[1]))
    if wrong:
        raise CircuitError(
            f"{file} has {len(wrong)} lines that are no `file<tab>wnid` with a class of `train`: "
            f"{', '.join(wrong[:3])}. Take it from the archive again."
        )
    return rows
