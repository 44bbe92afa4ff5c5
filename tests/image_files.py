"""Files and folders of random pictures for the tests of image sources."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from circuitvit.images import Splits

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the home folder."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def each(splits: Splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def picture(seed: int, size=(8, 8), mode="RGB") -> Image.Image:
    """A picture of few colours, so that formats without loss keep it to the byte."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode=None)


def write_folder(root: Path, classes=("cat", "dog"), count=10, **look) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * label + i, **look).save(root / name / f"{i}.png")
    return root


def write_parquet(path: Path, labels: list, *, image="image", label="label", seed=0) -> Path:
    """Plain parquet by pyarrow: no feature types, as other tools write it."""
    import io

    rows = []
    for i in range(len(labels)):
        buffer = io.BytesIO()
        picture(seed + i).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def as_bytes(image: torch.Tensor) -> np.ndarray:
    """The bytes [height width channel] that a normalised image was made of."""
    return ((image * 0.5 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
