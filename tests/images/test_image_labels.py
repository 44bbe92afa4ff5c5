"""Labels: coded from 0, classes kept in an order, and matched to a model's by name."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ANIMALS, ImageSet, Pairs, categories, load_splits
from circuitvit.images.classes.labels import as_one, coded, matched, selected
from circuitvit.preprocessing import class_name

DATA = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("ant", "bee", "cat", "dog")
LABELLED = np.array([0, 1, 2, 3, 3, 2, -1]), NAMES


def pictures(labels, **more) -> ImageSet:
    images = np.random.default_rng(0).random((len(labels), 4, 4)).astype(np.float32)
    return ImageSet.from_arrays(images, labels, **more)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3, 10, 2], ("1", "2", "3", "10")),  # by number, not as text
        ([3, 7, 9, 7], ("3", "7", "9")),
        (["tea", "coffee", "tea"], ("coffee", "tea")),
        ([True, False], ("False", "True")),
        ([0, 0], ("0",)),
    ],
)
def test_labels_are_coded_in_order_and_named_by_their_values(labels, names):
    codes, found = coded(labels)
    assert found == names
    assert [found[code] for code in codes] == [str(label) for label in labels]
    made = pictures(np.array(labels))
    assert made.class_names == names
    assert made.labels.tolist() == codes.tolist()


def test_labels_none_and_below_zero_are_images_without_one():
    assert coded([5, None, -1, 7])[0].tolist() == [0, -1, -1, 1]
    assert coded([1, None, -1], NAMES)[0].tolist() == [1, -1, -1]
    with pytest.raises(CircuitError, match=r"2 labels are below 0"):
        pictures([0, -1, 3, -1])


def test_a_class_without_images_keeps_its_place():
    codes, names = coded([0, 3, 3], NAMES)
    assert codes.tolist() == [0, 3, 3]
    assert names == NAMES
    assert pictures([0, 3], class_names=NAMES).class_names == NAMES


def test_labels_beyond_the_names_are_refused():
    with pytest.raises(CircuitError, match=r"labels go up to 4, but there are 4 class names"):
        coded([0, 4], NAMES)
    with pytest.raises(CircuitError, match=r"labels 'eel' are no class names"):
        coded(["ant", "eel"], NAMES)
    assert coded(["dog", "ant"], NAMES)[0].tolist() == [3, 0]


# Some classes


@pytest.mark.parametrize("classes", [["dog", "ant"], [3, "ant"], ("3", "0")])
def test_classes_are_kept_in_the_order_given(classes):
    codes, names = selected(LABELLED, classes)
    assert names == ("dog", "ant")
    assert codes.tolist() == [1, -2, -2, 0, 0, -2, -1]


def test_a_class_that_is_called_a_number_is_found_by_name_first():
    codes, names = selected((np.array([0, 1, 2]), ("9", "1", "0")), ["0", "1"])
    assert names == ("0", "1")
    assert codes.tolist() == [-2, 1, 0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dgo", 4, -1, True], r"'dgo', 4, -1, True are not there.*'ant', 'bee'.*'dog' for 'dgo'"),
        (["dog", 3], r"'dog' are named twice"),
        ([], r"none is named"),
        ("cat", r"expected 'animals' or a list.*\['cat'\]"),
        ("animals", r"Tiny-ImageNet.*'n01443537'.*'ant'"),
    ],
)
def test_classes_that_cannot_be_kept_are_named(classes, message):
    with pytest.raises(CircuitError, match=message):
        selected(LABELLED, classes)


def test_a_class_asked_for_that_has_no_images_is_refused():
    with pytest.raises(CircuitError, match=r"no images of 'cat'"):
        selected((np.array([0, 1]), NAMES), ["ant", "cat"])


def test_digits_of_some_classes_are_those_digits():
    whole, some = load_splits("digits"), load_splits("digits", classes=["8", 3])
    assert some.train.class_names == ("8", "3")
    rows = {
        row.numpy().tobytes(): whole.test.class_names[label]
        for part in (whole.train, whole.validation, whole.test)
        for row, label in zip(part.images, part.labels, strict=True)
    }
    found = [
        rows[row.numpy().tobytes()] == some.train.class_names[label]
        for part in (some.train, some.validation, some.test)
        for row, label in zip(part.images, part.labels, strict=True)
    ]
    assert all(found)
    assert len(found) == sum(name in "83" for name in rows.values())


# Matched to a model's classes


def test_classes_are_matched_by_name_whatever_their_order():
    codes, names = matched(LABELLED, ("dog", "cow", "cat", "bee", "ant"))
    assert codes.tolist() == [4, 3, 2, 0, 0, 2, -1]
    assert names == ("dog", "cow", "cat", "bee", "ant")


def test_names_agree_but_for_case_underscores_and_synonyms():
    wanted = ("golden retriever", "Tabby, tabby cat", "crane", "crane, machine", "tench, Tinca")
    labelled = np.array([0, 1, 2]), ("Golden_Retriever", "tabby", "TENCH")
    assert matched(labelled, wanted)[0].tolist() == [0, 1, 4]
    # `crane` alone would be two of them, were it not there to the letter.
    assert matched((np.array([0]), ("crane",)), wanted)[0].tolist() == [2]


def test_a_name_that_may_be_several_classes_is_refused_with_all_of_them():
    dogs = ("Cardigan, Cardigan Welsh corgi", "cardigan", "tench")
    for name in ("CARDIGAN", "Cardigan", "cardigan, a dog"):
        with pytest.raises(CircuitError) as caught:
            matched((np.array([0, 1]), (name, "Tench")), dogs)
        assert (
            f"the data's {name!r} may be the model's 'Cardigan, Cardigan Welsh corgi' (class 0) or "
            "'cardigan' (class 1)." in str(caught.value)
        )
    assert matched((np.array([0]), ("cardigan",)), dogs)[0].tolist() == [1]
    assert matched((np.array([0]), ("cardigan, cardigan welsh corgi",)), dogs)[0].tolist() == [0]
    with pytest.raises(
        CircuitError, match=r"'crane' may be the model's 'crane' .*0.* or .*\(class 2"
    ):
        matched((np.array([0]), ("crane",)), ("crane", "tench", "crane"))


def test_a_models_own_names_fit_though_two_are_the_same():
    names = ("crane", "tench", "crane")
    assert matched((np.array([0, 2, 1, -1]), names), names)[0].tolist() == [0, 2, 1, -1]
    with pytest.raises(CircuitError, match="several classes are called 'crane'"):
        coded(["tench", "crane"], names)
    with pytest.raises(CircuitError, match="2 classes are called 'crane', those at 0, 2"):
        selected((np.array([0, 1, 2]), names), ["crane", "tench"])
    assert selected((np.array([0, 1, 2]), names), ["tench", 2])[0].tolist() == [-2, 0, 1]


def test_classes_without_images_need_no_counterpart():
    assert matched((np.array([1]), ("unknown", "ant")), NAMES)[0].tolist() == [0]


def test_unknown_names_are_listed_with_the_nearest_and_the_way_out():
    with pytest.raises(
        CircuitError,
        match=r"'cats', 'zebra' are not among the model's 'ant'.*nearest: 'cat' for 'cats'\).*"
        r"dataclasses\.replace\(model\.preprocessing, class_names=None\)",
    ):
        matched((np.array([0, 1, 2, 3]), ("cats", "zebra", "ant", "bee")), NAMES)
    with pytest.raises(CircuitError) as caught:  # three are not four, so by index won't do
        matched((np.array([0, 1, 2]), ("cats", "zebra", "ant")), NAMES)
    assert str(caught.value).endswith("Rename them, or keep those that match with classes=[…].")


def test_two_classes_of_the_data_cannot_be_one_of_the_model():
    with pytest.raises(CircuitError, match=r"'cat' as 'cat', 'Cat' as 'cat'"):
        matched((np.array([0, 1]), ("cat", "Cat")), NAMES)


def test_a_model_that_knows_its_classes_gets_them_in_its_order():
    vit = cv.ViT(cv.ViTConfig(image_size=8, patch_size=4, channels=1, classes=10, width=8, depth=1,
                              heads=2, mlp_width=8), seed=0)  # fmt: skip
    plain = load_splits("digits")
    vit.preprocessing = cv.Preprocessing(class_names=tuple("9876543210"))
    part = load_splits("digits", model=vit).train
    assert part.class_names == tuple("9876543210")
    assert part.labels.tolist() == [9 - label for label in plain.train.labels]
    few = load_splits("digits", model=vit, classes=["3", "8"]).train  # still the model's ten
    assert few.class_names == tuple("9876543210")
    assert set(few.labels.tolist()) == {1, 6}


def test_without_names_the_number_of_classes_must_agree():
    vit = cv.ViT(cv.ViTConfig(image_size=8, patch_size=4, channels=1, classes=2, width=8, depth=1,
                              heads=2, mlp_width=8), seed=0)  # fmt: skip
    vit.preprocessing = cv.Preprocessing()
    with pytest.raises(CircuitError, match=r"2 classes, the data 'digits' have 10.*classes="):
        load_splits("digits", model=vit)
    assert load_splits("digits", model=vit, classes=[3, 8]).train.class_names == ("3", "8")


# The animals


def test_there_are_58_animals_named_as_in_torchvision_and_timm():
    from timm.data import ImageNetInfo
    from torchvision.models import ViT_B_16_Weights

    info, theirs = ImageNetInfo("imagenet-1k"), ViT_B_16_Weights.DEFAULT.meta["categories"]
    assert len({animal.wnid for animal in ANIMALS}) == len(categories()) == len(ANIMALS) == 58
    assert [animal.wnid for animal in ANIMALS] == sorted(animal.wnid for animal in ANIMALS)
    order = {wnid: place for place, wnid in enumerate(info.label_names())}
    for animal in ANIMALS:
        assert info.label_name_to_description(animal.wnid).split(",")[0] == animal.name
        assert theirs[order[animal.wnid]] == animal.name


def test_categories_are_those_of_wordnet_nearly():
    found = categories()
    assert len(set(found.values())) == 17
    assert {n for n, c in found.items() if c == "dogs"} == {
        "Chihuahua", "Yorkshire terrier", "golden retriever", "Labrador retriever",
        "German shepherd", "standard poodle",
    }  # fmt: skip
    assert found["dugong"] == "water birds and sea mammals"
    assert found["lesser panda"] == found["African elephant"] == "elephant and panda"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no parquet files in {DATA}")
def test_the_animals_of_tiny_imagenet_are_found_among_its_classes(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    source = str(DATA / "tiny_imagenet_animals_*.parquet")
    splits = load_splits(source, classes="animals", limit=116, image_size=16)
    assert splits.train.class_names == tuple(animal.name for animal in ANIMALS)
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels.bincount(minlength=58).tolist() == [2] * 58
    by_wnid = load_splits(source, classes=[a.wnid for a in ANIMALS], limit=116, image_size=16)
    assert by_wnid.test.fingerprint() == splits.test.fingerprint()


def test_image_sets_say_how_they_were_made_and_trained_models_keep_it():
    splits = cv.load_splits("digits", limit=64)
    assert splits.train.preprocessing == cv.Preprocessing(class_names=tuple("0123456789"))
    assert splits.train.subset(slice(20)).preprocessing == splits.train.preprocessing
    config = cv.ViTConfig(
        image_size=8, patch_size=4, channels=1, classes=10, width=8, depth=1, heads=1, mlp_width=8
    )
    recipe = cv.Recipe(epochs=1, batch=16)
    trained = cv.train(cv.ViT(config, seed=0), splits.train, splits.validation, recipe).vit
    assert trained.preprocessing == splits.train.preprocessing


def test_a_model_whose_normalisation_is_not_known_is_warned_of():
    vit = random_vit(shape("uniform", image_size=8, classes=10))
    with pytest.warns(UserWarning, match="normalised is not known; mean and std 0.5 are taken"):
        cv.load_splits("digits", model=vit, limit=20)
    cv.load_splits("digits", model=vit, preprocessing=cv.Preprocessing(), limit=20)


def test_ten_thousand_classes_take_no_longer_than_they_must():
    names = tuple(f"class {number}" for number in range(10_000))
    labels = np.arange(10_000)
    start = time.process_time()
    assert selected((labels, names), names[::-1])[1] == names[::-1]
    assert (matched((labels, names), names[::-1])[0] == labels[::-1]).all()
    assert as_one((labels, names), names)[1] == names
    with pytest.raises(CircuitError) as told:
        selected((labels, names), [f"{name}?" for name in names] * 2)
    assert len(str(told.value)) < 1000
    with pytest.raises(CircuitError) as told:
        matched((labels, tuple(f"{name}?" for name in names)), names)
    assert len(str(told.value)) < 1000
    images = ImageSet(torch.arange(1e4).view(-1, 1, 1, 1), torch.from_numpy(labels), names)
    assert Pairs.noised(images, clean="class 7", count=1).labels.tolist() == [7]
    pairs = Pairs.by_class(images, count=500)
    assert (pairs.labels != pairs.corrupt_labels).all()
    with pytest.raises(CircuitError, match=r"'nope', which is no class.* and 9988 more") as told:
        Pairs.by_class(images, clean="nope", count=1)
    assert len(str(told.value)) < 1000
    assert time.process_time() - start < 10


def test_names_that_are_no_text_are_spelled_out():
    """A folder's name of another encoding can't be saved as it is."""
    assert class_name("caf\udce9") == "caf\\udce9"
    assert cv.Preprocessing(class_names=("caf\udce9", "é")).class_names == ("caf\\udce9", "é")
