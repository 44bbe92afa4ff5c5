"""Images from arrays, in memory and in `.npz` files."""

import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, load_splits

PLAIN = cv.Preprocessing(0, 1)


def colours(count=10, channels=3, seed=0) -> np.ndarray:
    shape = (count, 6, 6, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scaled(images: np.ndarray) -> torch.Tensor:
    """What bytes [image height width channel] are as an ImageSet's pixels, not normalised."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


RGB, GREY, LABELS = colours(), colours(channels=1), np.arange(10) % 3


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (RGB, scaled(RGB)),
        (torch.from_numpy(RGB), scaled(RGB)),
        (RGB.transpose(0, 3, 1, 2), scaled(RGB)),
        (GREY[..., 0], scaled(GREY)),
        (GREY.transpose(0, 3, 1, 2), scaled(GREY)),
        (RGB.astype(np.int64), scaled(RGB)),
        (RGB / 255, scaled(RGB)),
        (scaled(RGB).to(torch.float64), scaled(RGB)),
        (scaled(RGB).requires_grad_(), scaled(RGB)),
        (np.concatenate([RGB, GREY], axis=3), scaled(RGB)),  # the fourth channel is transparency
        (np.concatenate([RGB, GREY], axis=3) / 255, scaled(RGB)),
        (GREY[..., 0] > 99, (scaled(GREY) > 99.5 / 255).float()),
        ([[[0, 255], [51, 0]]], torch.tensor([[[[0, 1], [0.2, 0]]]])),
    ],
)
def test_arrays_of_all_common_forms_become_the_same_pixels(images, expected):
    found = ImageSet.from_arrays(images, LABELS[: len(images)], preprocessing=PLAIN)
    assert found.images.shape == expected.shape
    assert (found.images - expected).abs().max() < 1e-6
    assert found.labels.tolist() == LABELS[: len(images)].tolist()


def test_arrays_are_looked_at_as_pictures_are():
    chosen = cv.Preprocessing((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear", crop=0.9)
    found = ImageSet.from_arrays(RGB, LABELS, ("a", "b", "c"), chosen, 9)
    from PIL import Image

    for array, image in zip(RGB, found.images, strict=True):
        large = np.asarray(Image.fromarray(array).resize((10, 10), Image.Resampling.BILINEAR))
        expected = (large[0:9, 0:9] / 255 - chosen.mean) / chosen.std
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-5
    grey = ImageSet.from_arrays(GREY, LABELS, preprocessing=PLAIN, channels=3).images
    assert torch.equal(grey, scaled(GREY).expand(-1, 3, -1, -1))
    assert ImageSet.from_arrays(RGB, LABELS, channels=1).images.shape == (10, 1, 6, 6)


def test_arrays_are_not_altered():
    floats = (RGB / 255).astype(np.float32)
    before = floats.copy()
    made = ImageSet.from_arrays(floats, LABELS)
    made.images.zero_()
    assert np.array_equal(floats, before)


def test_a_model_says_how_arrays_are_looked_at():
    vit = cv.ViT(cv.ViTConfig(image_size=8, patch_size=4, channels=3, classes=3, width=8, depth=1,
                              heads=2, mlp_width=8), seed=0)  # fmt: skip
    vit.preprocessing = cv.Preprocessing()
    found = ImageSet.from_arrays(GREY, LABELS, model=vit)
    assert vit(found.images).shape == (10, 3)
    assert found.class_names == ("0", "1", "2")
    vit.preprocessing = cv.Preprocessing(class_names=("x", "y", "z"))
    assert ImageSet.from_arrays(RGB, LABELS, model=vit).class_names == ("x", "y", "z")  # by index
    by_name = ImageSet.from_arrays(RGB, LABELS, ("z", "x", "y"), model=vit)
    assert by_name.labels.tolist() == [(2, 0, 1)[label] for label in LABELS]
    with pytest.raises(CircuitError, match=r"'w' are not among the model's"):
        ImageSet.from_arrays(RGB, LABELS, ("z", "x", "w"), model=vit)
    vit.preprocessing = cv.Preprocessing()
    with pytest.raises(CircuitError, match=r"3 classes, these images 2.*class_names"):
        ImageSet.from_arrays(RGB, LABELS // 2, model=vit)
    with pytest.raises(CircuitError, match=r"image_size is 5, but the model's is 8"):
        ImageSet.from_arrays(RGB, LABELS, image_size=5, model=vit)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (RGB[0], LABELS, r"labels have the shape \(10,\), expected \(6,\)"),
        (RGB[:, :, :, :2], LABELS, r"shape \(10, 6, 6, 2\).*1, 3 or 4 channels"),
        (RGB[:0], LABELS[:0], r"there are no train images"),
        (RGB.astype(float), LABELS, r"\(float64\) go from 0.0 to 255.0, expected 0 to 1"),
        (RGB.astype(int) * 9, LABELS, r"expected 0 to 255"),
        (np.full((10, 6, 6), np.nan), LABELS, r"go from nan to nan"),
        (RGB.astype(str), LABELS, r"of type <U3"),
        (RGB, LABELS / 2, r"labels are of type float64"),
        (RGB, np.eye(10), r"labels have the shape \(10, 10\), expected \(10,\), one class"),
        (RGB.astype(float), LABELS[:3], r"255.0, expected 0 to 1.*labels have the shape \(3,\)"),
        (RGB[:, :5], LABELS, r"5×6 pixels.*Give image_size"),
    ],
)
def test_arrays_that_are_no_images_are_told(images, labels, message):
    with pytest.raises(CircuitError, match=message):
        ImageSet.from_arrays(images, labels)


def test_lists_that_are_no_arrays_are_told():
    with pytest.raises(CircuitError) as caught:
        ImageSet.from_arrays([[[1, 2], [3]], [[1, 2], [3, 4]]], [[0, 1], [2]])
    for what in ("train images", "train labels"):
        assert f"the {what} can't be put into one array of one shape" in str(caught.value)
    with pytest.raises(CircuitError, match=r"train images can't be put.*\[8, 8\].*\[7, 8\]"):
        ImageSet.from_arrays([torch.ones(8, 8), torch.ones(7, 8)], [0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_floats_and_lists_of_them_are_images(dtype):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = ImageSet.from_arrays(images.float(), [0, 1, 0, 1])
    for given in (images, list(images), images.clone().requires_grad_()):
        made = ImageSet.from_arrays(given, torch.tensor([0, 1, 0, 1]))
        assert made.fingerprint() == expected.fingerprint()


# Files


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("images", "labels", "test_data", "test_targets"),
    ],
)
def test_the_arrays_of_a_file_are_known_by_their_names(tmp_path, names):
    arrays = RGB, LABELS[:, None], colours(4, seed=1), np.array([[0], [1], [2], [0]])
    np.savez(tmp_path / "set.npz", **dict(zip(names, arrays, strict=True)))
    splits = load_splits(tmp_path / "set.npz", preprocessing=PLAIN)
    assert torch.equal(splits.test.images, scaled(arrays[2]))
    assert splits.test.labels.tolist() == [0, 1, 2, 0]
    assert len(splits.train) + len(splits.validation) == 10


@pytest.mark.filterwarnings("ignore:split=")
def test_a_file_of_three_parts_keeps_them(tmp_path):
    parts = {"train": colours(5), "val": colours(3), "test": colours(2)}
    arrays = {f"{part}_images": images for part, images in parts.items()}
    arrays |= {f"{part}_labels": np.arange(len(i)) for part, i in parts.items()}
    np.savez_compressed(tmp_path / "set.npz", class_names=list("abcde"), **arrays)
    splits = load_splits(str(tmp_path / "set.npz"), preprocessing=PLAIN)
    assert torch.equal(splits.train.images, scaled(parts["train"]))
    assert torch.equal(splits.validation.images, scaled(parts["val"]))
    assert splits.test.class_names == tuple("abcde")
    sliced = load_splits(
        str(tmp_path / "set.npz"),
        split={"train": "train[:3]", "validation": "train[3:]", "test": "val"},
        preprocessing=PLAIN,
    )
    assert torch.equal(sliced.train.images, scaled(parts["train"][:3]))
    assert torch.equal(sliced.test.images, scaled(parts["val"]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": RGB}, r"the arrays \['x_train'\], expected x_train and y_train"),
        ({"pictures": RGB, "classes": LABELS}, r"\['pictures', 'classes'\], expected"),
        ({"x": RGB, "images": RGB, "y": LABELS}, r"two arrays of train images, 'x' and 'images'"),
        ({"x": RGB, "y": np.array([None] * 10)}, r"can't be read.*without Python objects"),
        ({"x": RGB, "y": LABELS - 1}, r"4 images have no label"),
        ({"x": RGB.astype(float), "y": LABELS}, r"train images .*expected 0 to 1"),
    ],
)
def test_files_that_hold_no_images_and_labels_are_told(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(CircuitError, match=message):
        load_splits(str(tmp_path / "set.npz"))


def test_broken_and_missing_files_are_told(tmp_path):
    np.savez(tmp_path / "set.npz", x=RGB, y=LABELS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:-300])
    (tmp_path / "text.npz").write_text("not arrays")
    for name in ("cut", "text"):
        with pytest.raises(CircuitError, match=rf"{name}\.npz can't be read"):
            load_splits(str(tmp_path / f"{name}.npz"))
    with pytest.raises(CircuitError, match=r"nothing at .*none\.npz"):
        load_splits(str(tmp_path / "none.npz"))
    with pytest.raises(CircuitError, match=r"can't be streamed"):
        load_splits(str(tmp_path / "set.npz"), streaming=True, limit=3)


def header(shape: tuple, kind="|u1") -> bytes:
    """The beginning of a `.npy` file of an array of any claimed shape."""
    said = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    said = said.ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said


def archived(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


LABELLED = header((3,), "<i8") + bytes(24)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (header((10**7, 10**4, 10**4)), "931,322.6 GiB, but holds 0 bytes"),
        (header((3, 4, 4)) + bytes(47), "48 bytes, but holds 47"),
        (header((3, 4, 4)) + bytes(49), "48 bytes, but holds 49"),
        (header((-3, -4, 4)) + bytes(48), "but holds"),
        (header((2, 10**400)), "can't be read"),
        (header((3, 4, 4), "|O") + bytes(384), "Python objects"),
        (b"\x93NUMPY\x03\x00" + header((3, 4, 4))[8:] + bytes(48), "version"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99), "can't be read"),
        (header((3, 4, 4))[:30], "can't be read"),
        (header((3, 4, 4)) + bytes(100 * 2**20), "more than 200 times"),
    ],
)  # fmt: skip
def test_an_archive_that_claims_more_than_it_holds_is_refused_unread(tmp_path, images, reason):
    path = archived(tmp_path / "set.npz", images=images, labels=LABELLED)
    tracemalloc.start()
    with pytest.raises(CircuitError, match=rf"set\.npz can't be read.*{reason}|{reason}"):
        load_splits(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_an_archive_needs_the_memory_that_is_free(tmp_path, monkeypatch):
    path = archived(tmp_path / "set.npz", images=header((3, 4, 4)) + bytes(48), labels=LABELLED)
    free = SimpleNamespace(available=100)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(CircuitError, match="claims .* bytes of arrays, and 100 bytes are free"):
        load_splits(path)
    monkeypatch.undo()
    raw = np.zeros((100, 4, 4), np.uint8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(CircuitError, match="100 images of 4×4 pixels take .* Give a limit"):
        ImageSet.from_arrays(raw, np.arange(100) % 2)


def test_an_archive_of_a_thousand_arrays_is_none_of_images(tmp_path):
    path = archived(tmp_path / "set.npz", **{f"x{n}": b"" for n in range(1001)})
    with pytest.raises(CircuitError, match="holds 1001 arrays, expected at most 1000"):
        load_splits(path)


def test_labels_beyond_any_class_and_of_strange_shapes_are_told():
    with pytest.raises(CircuitError, match=r"labels go up to 18446744073709551615"):
        ImageSet.from_arrays(RGB[:1], np.array([2**64 - 1], np.uint64), ("a",))
    endless = np.broadcast_to(np.array(0), (10**9,))
    with pytest.raises(CircuitError, match=r"shape \(1000000000,\), expected \(10,\)"):
        ImageSet.from_arrays(RGB, endless)
    with pytest.raises(CircuitError, match="class_names is 5, expected a name for each"):
        ImageSet.from_arrays(RGB, LABELS, 5)
