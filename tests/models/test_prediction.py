"""Pictures in, class names with probabilities out."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.models import prediction
from circuitvit.models.prediction import Prediction, Predictions
from circuitvit.train import AdaptedViT

SHARED = Path(__file__).parents[3] / "shared"
PICTURES = SHARED / "data" / "cifar10_test.parquet"
NAMES = ("cat", "dog", "owl|", "<b>emu")
SEEN = cv.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), class_names=NAMES)


@pytest.fixture(scope="module")
def vit():
    made = random_vit(shape(channels=3), dtype=torch.float32)
    made.preprocessing = SEEN
    return made


def noise(count=1, side=4, channels=3):
    return np.random.default_rng(3).integers(0, 256, (count, side, side, channels), np.uint8)


def by_hand(vit, pixels):
    """Softmax of the logits of bytes [image height width channel] of the model's own size."""
    mean, std = (np.array(x, dtype=np.float32) for x in (SEEN.mean, SEEN.std))
    images = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return vit(images).double().softmax(dim=1)


def shares(found, classes=4):
    """The probabilities of all classes, in the logits' order."""
    each = [found] if isinstance(found, Prediction) else found
    rows = [dict(zip(one.classes, one.probabilities, strict=True)) for one in each]
    return torch.tensor([[row[c] for c in range(classes)] for row in rows], dtype=torch.float64)


def close(one, other):
    return torch.allclose(one, other, atol=1e-5)


def encoded(image, form="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_probabilities_are_the_softmax_of_normalised_pixels(vit):
    pixels = noise(5)
    expected = by_hand(vit, pixels)
    found = vit.predict(pixels)
    assert isinstance(found, Predictions)
    assert close(shares(found), expected)
    for one, row in zip(found, expected, strict=True):
        order = row.argsort(descending=True)
        assert one.classes == tuple(order.tolist())
        assert one.labels == tuple(NAMES[c] for c in order)
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
        assert sum(one.probabilities) == pytest.approx(1)
    assert found.labels == tuple(NAMES[c] for c in expected.argmax(dim=1))
    assert found.probabilities == pytest.approx(expected.amax(dim=1).tolist(), abs=1e-5)


def test_one_picture_gives_one_prediction_and_a_list_several(vit):
    picture = Image.fromarray(noise()[0])
    one, several = vit.predict(picture, top=2), vit.predict([picture], top=2)
    assert isinstance(one, Prediction)
    assert isinstance(several, Predictions)
    assert one == several[0]
    assert len(one) == 2
    assert one[0] == (one.label, one.probability) == (one.labels[0], one.probabilities[0])
    assert list(one) == list(zip(one.labels, one.probabilities, strict=True))
    assert isinstance(several[:1], Predictions)


def test_a_picture_is_the_same_however_it_comes(vit, tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (23, 31, 3), np.uint8))
    path = tmp_path / "a.png"
    image.save(path)
    ways = [path, str(path), image, np.asarray(image), encoded(image), np.asarray(image)[None][0]]
    first, *others = (shares(vit.predict(way)) for way in ways)
    assert all(torch.equal(first, other) for other in others)
    assert [one.picture for one in vit.predict([path, image])] == [str(path), "picture 1"]


def test_pictures_are_read_as_load_splits_reads_them(vit, tmp_path):
    """Other sizes and modes, EXIF and all: the same images, so the same logits."""
    rng, files = np.random.default_rng(2), []
    for number, mode in enumerate(["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "RGB"]):
        form = "tiff" if mode == "CMYK" else "png"
        pixels = rng.integers(0, 256, (9 + number, 17, 3), np.uint8)
        options = {}
        if number == 7:
            form, exif = "jpeg", Image.Exif()
            exif[0x0112] = 6  # turned by 90°
            options = {"exif": exif}
        for label, name in enumerate(NAMES[:2]):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            path = folder / f"{number}.{form}"
            shown = Image.fromarray(np.roll(pixels, label)).convert(mode)
            path.write_bytes(encoded(shown, form, **options))
            files.append(path)
    two = random_vit(shape(channels=3, classes=2), dtype=torch.float32)
    two.preprocessing = cv.Preprocessing(
        SEEN.mean, SEEN.std, crop=0.8, interpolation="bilinear", class_names=NAMES[:2]
    )
    splits = cv.load_splits(tmp_path, model=two, validation=0.25, test=0.25)
    images = torch.cat([part.images for part in (splits.train, splits.validation, splits.test)])
    expected = two(images).detach().double().softmax(dim=1)
    found = shares(two.predict(files), classes=2)
    opened = shares(two.predict([Image.open(path) for path in files]), classes=2)
    assert torch.allclose(found.sort(dim=0).values, expected.sort(dim=0).values, atol=1e-5)
    assert torch.equal(opened, found)


def test_grey_models_and_deep_pictures(tmp_path):
    vit = random_vit(shape(), dtype=torch.float32)
    vit.preprocessing = cv.Preprocessing(class_names=NAMES)
    grey = noise(3, channels=1)
    assert torch.equal(shares(vit.predict(grey)), shares(vit.predict([*grey[..., 0]])))
    deep = Image.fromarray(grey[0, :, :, 0].astype(np.uint16) * 257)
    found = vit.predict(deep, pixel_range=(0, 65535))
    assert close(shares(found), shares(vit.predict(grey[0])))
    with pytest.raises(cv.CircuitError, match="picture 0: .*say it with pixel_range"):
        vit.predict(deep)


def test_a_saved_model_tells_digits_as_it_does_those_of_an_image_set(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)[:300]
    vit = random_vit(shape(image_size=8, classes=10), dtype=torch.float32)
    vit.preprocessing = cv.Preprocessing(
        mean=0.3, std=0.4, class_names=tuple(f"digit {n}" for n in range(10))
    )
    vit.save_pretrained(tmp_path)
    data = cv.ImageSet.from_arrays(pixels, digits.target[:300], model=vit)
    expected = vit(data.images).detach().double().softmax(dim=1)
    found = cv.ViT.from_pretrained(tmp_path).predict(list(pixels), top=10)
    assert close(shares(found, classes=10), expected)
    assert found.labels == tuple(f"digit {n}" for n in expected.argmax(dim=1))


@pytest.mark.skipif(not PICTURES.is_file(), reason="CIFAR-10 is not beside this checkout")
def test_real_pictures_are_those_of_load_splits(tmp_path, monkeypatch):
    import pyarrow.parquet as pq
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    rows = pq.read_table(PICTURES).slice(0, 40).to_pylist()
    (column,) = [name for name, value in rows[0].items() if isinstance(value, dict)]
    raws = [row[column]["bytes"] for row in rows]
    vit = random_vit(shape(channels=3, image_size=32, patch_size=16), dtype=torch.float32)
    vit.preprocessing = SEEN
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in raws])
    assert close(shares(vit.predict(raws)), by_hand(vit, pixels))


@pytest.mark.parametrize("kind", ["circuit vit", "adapted", "double", "bfloat16"])
def test_every_kind_of_model_predicts(vit, kind):
    pixels, model = noise(3), vit
    if kind == "circuit vit":
        scores = cv.eap(vit, random_pairs(vit, 2))
        model = cv.compile(vit, scores.top(40), level="edge")
    elif kind == "adapted":
        model = AdaptedViT(vit, 4, class_names=NAMES)
    elif kind != "adapted":
        model = copy.deepcopy(vit).to(getattr(torch, kind))
    expected = by_hand(model.float(), pixels) if kind != "bfloat16" else by_hand(vit, pixels)
    found = model.predict(pixels)
    assert torch.allclose(shares(found), expected, atol=0.1 if kind == "bfloat16" else 1e-5)
    assert set(found[0].labels) == set(NAMES)


def test_the_model_and_the_pictures_stay_as_they_are(vit):
    model = copy.deepcopy(vit).train()
    model.blocks[0].eval()
    modes = [part.training for part in model.modules()]
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen = []
    model.register_forward_hook(
        lambda part, *_: seen.append((part.training, torch.is_grad_enabled()))
    )
    picture = Image.fromarray(noise(side=9)[0])
    data = picture.tobytes()
    model.predict(picture)
    assert seen == [(False, False)]
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert picture.tobytes() == data


def test_many_pictures_go_in_batches(vit, monkeypatch):
    pixels, sizes = noise(7), []
    model = copy.deepcopy(vit)
    model.register_forward_hook(lambda part, inputs, output: sizes.append(len(inputs[0])))
    whole = shares(model.predict(pixels))
    assert sizes == [7]
    monkeypatch.setattr(prediction, "DECODED_AT_ONCE", 5)
    found = model.predict((picture for picture in pixels), batch=2, workers=2)
    assert sizes == [7, 2, 2, 1, 2]
    assert close(shares(found), whole)
    assert [one.picture for one in found] == [f"picture {n}" for n in range(7)]


def test_without_names_or_preprocessing_it_is_said_what_is_taken(vit):
    model = copy.deepcopy(vit)
    model.preprocessing = None
    with pytest.warns(UserWarning, match="mean and std 0.5 are taken. Assign cv.Preprocessing"):
        found = model.predict(noise()[0])
    assert set(found.labels) == set("0123")
    model.preprocessing = cv.Preprocessing(class_names=("a", "b"))
    with pytest.warns(UserWarning, match="2 class names for 4 classes"):
        found = model.predict(noise()[0])
    assert set(found.labels) == set("0123")


def test_results_show_themselves_and_nothing_from_outside_is_markup(vit):
    one = Prediction("a<i>.png", ("<b>emu", "cat"), (0.75, 0.25), (3, 0))
    assert repr(one) == "a<i>.png: <b>emu 75.0%, cat 25.0%"
    several = Predictions((one,) * 22)
    assert repr(several).splitlines()[-1] == "… and 2 more pictures"
    assert several.table()[:2] == [
        ["picture", "1.", "2."], ["a<i>.png", "<b>emu 75.0%", "cat 25.0%"],
    ]  # fmt: skip
    for shown in (one._repr_html_(), several._repr_html_()):
        assert "<b>" not in shown
        assert "<i>" not in shown
        assert "75.0%" in shown
    assert "… and 2 more pictures" in several._repr_html_()


def test_bad_pictures_are_refused_with_the_remedy(vit, tmp_path, as_users_call):
    good, text = noise()[0], tmp_path / "a.png"
    text.write_text("<html>")
    for pictures, options, message in (
        ([], {}, "there are no pictures"),
        (torch.zeros(1, 3, 4, 4), {}, "pictures are a Tensor, expected paths.*go to vit"),
        ("https://a.org/b.png", {}, "is a URL, and nothing is downloaded; fetch it first"),
        (tmp_path, {}, "is a folder; give its files"),
        ([good, "no.png"], {}, r"1 of 2 pictures can't be read: .*no\.png.*no such file"),
        (text, {}, "it is a web page"),
        (good.astype(float), {}, "an array of float64, expected uint8"),
        (good.transpose(2, 0, 1)[:, :, :2], {}, r"shape \(3, 4, 2\), expected .height width"),
        ([good, 7, None], {}, "picture 1 is a int, expected.*; picture 2 is a NoneType"),
        (good, {"top": 0}, "top is 0, expected a whole number ≥ 1"),
        (good, {"batch": 1.5}, "batch is 1.5, expected a whole"),
        (good, {"pixel_range": 3}, "pixel_range is 3, expected two numbers"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            vit.predict(pictures, **options)
    broken = copy.deepcopy(vit)
    with torch.no_grad():
        broken.head.bias[0] = torch.nan
    with pytest.raises(cv.CircuitError, match="logits hold NaN or infinity"):
        broken.predict(good)


def test_all_that_cant_be_read_is_counted_over_all_pictures(vit, monkeypatch):
    monkeypatch.setattr("circuitvit.models.prediction.DECODED_AT_ONCE", 2)
    good, seen = noise()[0], []
    handle = vit.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with pytest.raises(cv.CircuitError) as caught:
        vit.predict([good, good, *["no.png"] * 7, good])
    handle.remove()
    assert str(caught.value).startswith("7 of 10 pictures can't be read: no.png: there is no such")
    assert "; and 2 more. Leave them out." in str(caught.value)
    assert seen == [2], "nothing is run after the first that can't be read"
    with pytest.raises(cv.CircuitError, match=r"1 of 2 pictures can't be read: picture 1: "):
        vit.predict([good, b"nothing"])


def test_messages_stay_short(vit):
    for pictures in ([3] * 3000, ["x" * 5000] * 50, [b"abc"] * 300, ["a://" + "x" * 5000] * 9):
        with pytest.raises(cv.CircuitError, match="and [0-9,]+ more") as caught:
            vit.predict(pictures)
        assert len(str(caught.value)) <= 2000


def test_files_and_buffers_are_one_picture(vit, tmp_path):
    Image.fromarray(noise()[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    expected = vit.predict(tmp_path / "a.png").probabilities
    with (tmp_path / "a.png").open("rb") as file:
        for given in (file, io.BytesIO(data), bytearray(data), memoryview(data), data):
            assert vit.predict(given).probabilities == pytest.approx(expected)
            assert vit.predict([given, given])[1].probabilities == pytest.approx(expected, rel=1e-5)
    with pytest.raises(cv.CircuitError, match="picture 0 is a file that can't be read: .*closed"):
        vit.predict(file)
    with pytest.raises(cv.CircuitError, match=r"a file of text; open it by open\(path, 'rb'\)"):
        vit.predict(io.StringIO("a"))


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((4, 4)), r"\(255 \* array\).astype\('uint8'\) makes it of floats"),
        (np.full((4, 4), 255, np.int64), r"uint8, 0 to 255; array.astype\('uint8'\)"),
        (np.full((4, 4), 256, np.uint16), r"it goes from 256 to 256: give a grey one as PIL"),
        (np.full((4, 4), -1), r"it goes from -1 to -1"),
        (np.ones((4, 4), bool), r"255 \* array.astype\('uint8'\) makes it of truth values"),
        (np.zeros((4, 4), object), "an array of object, expected uint8, 0 to 255; give one of num"),
        (np.zeros((5, 8, 8), np.uint8), r"a stack of grey pictures needs .* array\[..., None\]"),
    ],
)
def test_arrays_of_other_kinds_are_refused_with_their_remedy(vit, array, remedy, as_users_call):
    with pytest.raises(cv.CircuitError, match=remedy):
        vit.predict(array)


def test_an_array_of_three_axes_is_one_picture(vit):
    assert isinstance(vit.predict(np.zeros((50, 8, 4), np.uint8)), Prediction)
    assert len(vit.predict(np.zeros((5, 8, 8), np.uint8)[..., None])) == 5


def test_a_preprocessing_that_is_none_is_refused_and_the_repr_shows_the_rest(vit):
    odd = copy.deepcopy(vit)
    odd.preprocessing = "x"
    with pytest.raises(cv.CircuitError, match="preprocessing is 'x', expected a cv.Preprocessing"):
        odd.predict(noise()[0])
    assert repr(odd).startswith("ViT(")
