"""Pictures as models look at them: against timm's and torchvision's own transforms."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import load_splits
from circuitvit.images.decoding.pixels import decode
from circuitvit.images.decoding.view_settings import asked_for
from circuitvit.images.image_table import Table

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZES = [(61, 40), (40, 61), (37, 37), (32, 32), (128, 33), (20, 500), (7, 5)]


def pictures() -> list[Image.Image]:
    """Of many sizes and modes, with structure at all scales, as photographs have."""
    drawn = []
    for i, size in enumerate(SIZES):
        draw = np.random.default_rng(i)
        coarse = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size), dtype=np.int64)
        noisy = (smooth + draw.integers(-40, 40, smooth.shape)).clip(0, 255).astype(np.uint8)
        drawn.append(Image.fromarray(noisy))
    return drawn + [drawn[0].convert(mode) for mode in ("L", "RGBA", "CMYK", "P", "1", "LA")]


def encoded(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "tiff" if image.mode == "CMYK" else "png")
    return {"bytes": buffer.getvalue(), "path": None}


def table_of(raws: list) -> Table:
    labels = np.zeros(len(raws), dtype=np.int64)
    return Table(labels, ("a",), {"train": (len(raws), lambda places: [raws[p] for p in places])})


def seen(raws: list, preprocessing: cv.Preprocessing, image_size: int | None, channels=None, **how):
    """What a model of this preprocessing is given."""
    asked, table = asked_for(None, preprocessing, image_size, channels), table_of(raws)
    found = decode(table, np.arange(len(raws)), asked.look(table), **how)
    assert found.skipped == ()
    return asked.normalised(found.pixels)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(
    ("resize", "crop"), [("shortest", 0.875), ("shortest", 1.0), ("squash", 0.9)]
)
def test_images_are_those_of_timms_evaluation_transform(interpolation, resize, crop):
    from timm.data import create_transform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    timms = create_transform(
        (3, 32, 32), is_training=False, interpolation=interpolation, mean=mean, std=std,
        crop_pct=crop, crop_mode="squash" if resize == "squash" else "center",
    )  # fmt: skip
    chosen = cv.Preprocessing(mean, std, interpolation, resize, crop)
    expected = torch.stack([timms(image.convert("RGB")) for image in pictures()])
    assert torch.equal(seen([encoded(image) for image in pictures()], chosen, 32), expected)


@pytest.mark.filterwarnings("ignore:split=")
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no parquet files in {DATA}")
def test_real_images_are_those_of_timms_evaluation_transform(tmp_path, monkeypatch):
    import datasets
    from timm.data import create_transform

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    stored = datasets.Dataset.from_parquet(str(DATA / "tiny_imagenet_animals_valid.parquet"))
    chosen = cv.Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=0.9)
    timms = create_transform((3, 96, 96), is_training=False, interpolation="bicubic", crop_pct=0.9)
    split = {"train": "train[:40]", "validation": "train[40:50]", "test": "train[50:60]"}
    found = load_splits(stored, preprocessing=chosen, image_size=96, split=split).train.images
    expected = [timms(row["image"].convert("RGB")) for row in stored.select(range(40))]
    assert torch.equal(found, torch.stack(expected))


def test_images_are_those_of_torchvisions_transforms_in_grey_too():
    from torchvision.transforms import InterpolationMode, v2

    theirs = v2.Compose([
        v2.Grayscale(), v2.Resize(28, InterpolationMode.BILINEAR), v2.CenterCrop(24),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.3,), (0.2,)),
    ])  # fmt: skip
    chosen = cv.Preprocessing((0.3,), (0.2,), "bilinear", "shortest", 24 / 28)
    expected = torch.stack([theirs(image.convert("RGB")) for image in pictures()[:7]])
    found = seen([encoded(image) for image in pictures()[:7]], chosen, 24, channels=1)
    assert (found - expected).abs().max() <= 1e-6  # `ToDtype` multiplies where ToTensor divides


def test_floats_are_resized_as_bytes_are_but_for_rounding():
    raws = [np.asarray(image) for image in pictures()[:6]]
    floats = [(raw / 255).astype(np.float32) for raw in raws]
    for chosen in (cv.Preprocessing(0, 1, crop=0.8), cv.Preprocessing(0, 1, "bilinear", "squash")):
        for channels in (1, 3):
            found = seen(floats, chosen, 30, channels)
            off = (found - seen(raws, chosen, 30, channels)).abs() * 255
            # Bytes are rounded, and what bicubic overshoots is cut, once an axis.
            assert off.max() <= (8 if chosen.interpolation == "bicubic" else 1.51)
            assert off.mean() <= 0.5
            assert found.min() >= 0
            assert found.max() <= 1


def test_any_number_of_workers_gives_the_same_images_in_the_same_order():
    raws = [encoded(pictures()[i % 7]) for i in range(300)]
    chosen = cv.Preprocessing(crop=0.9)
    alone = seen(raws, chosen, 16)
    for workers in (1, 2, 5):
        assert torch.equal(seen(raws, chosen, 16, workers=workers), alone)


def test_pictures_are_turned_as_the_camera_was_held():
    image, buffer = pictures()[2], io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(buffer, "png", exif=exif)
    turned = seen([{"bytes": buffer.getvalue(), "path": None}], cv.Preprocessing(0, 1), None)
    expected = torch.from_numpy(np.asarray(image.rotate(-90)).copy()).permute(2, 0, 1) / 255
    assert torch.equal(turned[0], expected)


def test_what_is_broken_in_any_way_is_told_and_the_rest_kept():
    whole = encoded(pictures()[2])
    broken = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a.png"},
              {"bytes": None, "path": "/no/such.png"}, {"bytes": whole["bytes"][:500], "path": None}]  # fmt: skip
    table = table_of([whole, *broken, whole])
    look = asked_for(None, None, 8, None).look(table)
    for workers in (0, 2):
        found = decode(table, np.arange(7), look, workers=workers)
        assert found.kept.tolist() == [0, 6]
        assert torch.equal(found.pixels[0], found.pixels[1])
        assert [line.split(":")[0] for line in found.skipped] == [
            "train image 1", "train image 2", "train image 3 (a.png)",
            "train image 4 (/no/such.png)", "train image 5",
        ]  # fmt: skip
        assert all(line.split(": ")[1] for line in found.skipped)


def test_a_file_with_flipped_bytes_never_ends_the_loading():
    whole = encoded(pictures()[2])["bytes"]
    jpeg = io.BytesIO()
    pictures()[2].save(jpeg, "jpeg")
    draw = np.random.default_rng(0)
    raws = []
    for data in [whole, jpeg.getvalue()] * 150:
        flipped = bytearray(data)
        for place in draw.integers(0, len(data), 4):
            flipped[place] ^= int(draw.integers(1, 256))
        raws.append({"bytes": bytes(flipped), "path": None})
    table = table_of(raws)
    found = decode(table, np.arange(300), asked_for(None, None, 8, 3).look(table))
    assert len(found.kept) + len(found.skipped) == 300
    assert len(found.skipped) > 10


def test_deviations_for_other_channels_are_refused():
    chosen = cv.Preprocessing((0.1, 0.2, 0.3), (1,))
    with pytest.raises(CircuitError, match=r"3 means or deviations, the images 1 channels"):
        load_splits("digits", preprocessing=chosen)


# A model says how


def model(**changes) -> cv.ViT:
    shape = dict(image_size=8, patch_size=4, channels=1, classes=10, width=8, depth=1, heads=2)
    vit = cv.ViT(cv.ViTConfig(**{**shape, "mlp_width": 8, **changes}), seed=0)
    vit.preprocessing = cv.Preprocessing()
    return vit


def test_a_models_size_channels_and_preprocessing_are_used():
    vit = model(image_size=12, channels=3)
    vit.preprocessing = cv.Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bilinear")
    found = load_splits("digits", model=vit, limit=20).test
    plain = load_splits("digits", image_size=12, channels=3, limit=20,
                        preprocessing=cv.Preprocessing(0, 1, "bilinear")).test  # fmt: skip
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    assert torch.allclose(found.images, (plain.images - mean) / std, atol=1e-6)
    assert vit(found.images).shape == (20, 10)


def test_preprocessing_by_hand_wins_over_the_models():
    vit = model()
    vit.preprocessing = cv.Preprocessing(0.1, 0.2)
    by_hand = load_splits("digits", model=vit, preprocessing=cv.Preprocessing(), limit=20)
    assert torch.equal(by_hand.test.images, load_splits("digits", limit=20).test.images)


def test_a_circuit_vit_is_a_model_too():
    vit = model()
    vit.preprocessing = cv.Preprocessing(0.1, 0.2)
    circuit = cv.eap(vit, cv.Pairs.by_class(load_splits("digits").train, count=4)).top(9)
    small = cv.compile(vit, circuit, level="edge", ablation="zero")
    expected = load_splits("digits", model=vit, limit=20).test.images
    assert torch.equal(load_splits("digits", model=small, limit=20).test.images, expected)


@pytest.mark.usefixtures("as_users_call")
def test_what_contradicts_the_model_is_refused_together():
    with pytest.raises(
        CircuitError,
        match=r"image_size is 9, but the model's is 8.*channels is 3, but the model's is 1.*workers is -1",
    ):
        load_splits("digits", model=model(), image_size=9, channels=3, workers=-1)
    with pytest.raises(CircuitError, match=r"takes 4 channels"):
        load_splits("digits", model=model(channels=4))
    with pytest.raises(
        CircuitError, match=r"model is a Linear, expected a ViT.*preprocessing is a dict"
    ):
        load_splits("digits", model=torch.nn.Linear(2, 2), preprocessing={"mean": 0.5})
    with pytest.raises(CircuitError, match=r"has 7 classes, the data 'digits' have 10"):
        load_splits("digits", model=model(classes=7))


def png(width: int, height: int, claims: int | None = None) -> bytes:
    """A PNG of black pixels, as small as that can be."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    packed, row = zlib.compressobj(1), bytes(width + 1)
    rows = [packed.compress(row) for _ in range(height)] + [packed.flush()]
    head = struct.pack(">IIBBBBB", claims or width, height, 8, 0, 0, 0, 0)
    told = (chunk(b"IHDR", head), chunk(b"IDAT", b"".join(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(told)


def encoded_as(form: str, image: Image.Image) -> bytes:
    image.save(buffer := io.BytesIO(), form)
    return buffer.getvalue()


def text_bomb() -> bytes:
    whole, packed = png(8, 8), b"Comment\0\0" + zlib.compress(bytes(20 * 2**20))
    data = b"zTXt" + packed
    text = struct.pack(">I", len(packed)) + data + zlib.crc32(data).to_bytes(4)
    return whole[:33] + text + whole[33:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: png(8, 1, claims=89_000_000), "89000000×1 pixels, expected at most 65535"),
        (lambda: png(70_000, 2), "70000×2 pixels, expected at most 65535 a side"),
        (lambda: png(1, 70_000), "1×70000 pixels, expected at most 65535 a side"),
        (lambda: png(60_000, 1), "would be resized to 480000×8"),
        (lambda: png(6000, 6000), "claims 6000×6000 pixels in a file of"),
        (lambda: encoded_as("GIF", Image.new("P", (6000, 6000))), "claims 6000×6000 pixels"),
        (text_bomb, "too large"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a program, which is not"),
    ],
)  # fmt: skip
def test_pictures_that_unpack_to_far_more_than_they_are_are_left_out(data, reason, monkeypatch):
    monkeypatch.setattr("circuitvit.images.decoding.pixels._MOST_PIXELS", 480_000)
    asked, table = asked_for(None, cv.Preprocessing(), 8, None), table_of([{"bytes": data()}])
    found = decode(table, np.arange(1), asked.look(table))
    assert len(found.kept) == 0
    assert reason in found.skipped[0]


def test_large_photographs_and_many_frames_are_read():
    coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((6400, 4800), Image.Resampling.BILINEAR)
    frames = [Image.new("L", (8, 8), grey) for grey in range(99)]
    frames[0].save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    raws = [{"bytes": encoded_as("JPEG", large)}, {"bytes": buffer.getvalue()}]
    raws.append({"bytes": encoded_as("JPEG", Image.new("RGB", (6400, 6400)))})
    assert seen(raws, cv.Preprocessing(), 8).shape == (3, 3, 8, 8)
