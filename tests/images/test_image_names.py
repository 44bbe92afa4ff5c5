"""Names of classes: which there are, in which order, and how they are compared."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import own_cache, picture, write_folder, write_parquet  # noqa: F401

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs, load_splits
from circuitvit.images.classes.labels import matched, place_of
from circuitvit.preprocessing import natural_key

COMPOSED = unicodedata.normalize("NFC", "Café")
APART = unicodedata.normalize("NFD", "Café")
NUMBERS = tuple(map(str, range(12)))


def vit_of(names, classes: int | None = None) -> cv.ViT:
    config = cv.ViTConfig(image_size=8, patch_size=4, channels=3, classes=classes or len(names),
                          width=8, depth=1, heads=2, mlp_width=8)  # fmt: skip
    vit = cv.ViT(config, seed=0)
    vit.preprocessing = cv.Preprocessing(class_names=names)
    return vit


def pictures(labels, **more) -> ImageSet:
    return ImageSet.from_arrays(np.zeros((len(labels), 4, 4), np.uint8), labels, **more)


# Order (case 5)


@pytest.fixture
def numbered(tmp_path) -> Path:
    return write_folder(tmp_path / "numbers", NUMBERS, count=5)


DOUBTFUL = r"alphabetical order \('0', '1', '10', '11', …\).*natural.*\('0', '1', '2', '3', …\)"


def test_folders_in_an_order_that_may_be_meant_otherwise_are_warned_of(numbered, as_users_call):
    with pytest.warns(UserWarning, match=DOUBTFUL + r".*class_order='natural' or") as said:
        found = load_splits(numbered)
    assert found.train.class_names == tuple(sorted(NUMBERS))
    assert [one.filename for one in said] == [__file__]
    with pytest.warns(UserWarning, match=DOUBTFUL):
        load_splits(numbered, model=vit_of(None, 12))


def test_the_order_can_be_chosen_and_labels_go_with_it(numbered):
    natural = load_splits(numbered, class_order="natural")
    other = load_splits(numbered, class_order="alphabetical")
    by_hand = load_splits(numbered, classes=list(NUMBERS))
    assert natural.train.class_names == by_hand.train.class_names == NUMBERS
    assert other.train.class_names == tuple(sorted(NUMBERS))
    colours = {
        picture(1000 * label + i).tobytes(): sorted(NUMBERS).index(name)
        for label, name in enumerate(NUMBERS)
        for i in range(5)
    }
    for part, order in ((natural.train, NUMBERS), (other.train, sorted(NUMBERS))):
        bytes_of = ((part.images * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1)
        for image, label in zip(bytes_of, part.labels, strict=True):
            assert sorted(NUMBERS)[colours[image.numpy().tobytes()]] == order[label]


def test_a_model_that_knows_its_names_decides_the_order(numbered):
    assert load_splits(numbered, model=vit_of(NUMBERS)).train.class_names == NUMBERS


def test_the_order_and_the_range_are_options_of_the_commands(numbered):
    import typer

    from circuitvit.cli import app
    from circuitvit.cli.options import ImageOptions

    given = ImageOptions(data=str(numbered), class_order="natural", pixel_range=(0.0, 9.0))
    assert given.splits().train.class_names == NUMBERS
    commands = typer.main.get_command(app).commands
    for command in ("train", "discover", "evaluate"):
        options = {option for one in commands[command].params for option in one.opts}
        assert {"--class-order", "--pixel-range"} <= options


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_order": "nat"}, r"class_order is 'nat', expected one of \('alphabetical', 'nat"),
        ({"class_order": "natural", "classes": ["1", "2"]}, "both say the order .* leave one out"),
        ({"class_order": "natural", "model": vit_of(NUMBERS)}, "leave class_order out"),
        (
            {"classes": [1, 2]},
            r"2 is the index of '10', but another class is called '2'; give names",
        ),
    ],
)
def test_choices_that_contradict_are_refused(numbered, more, message):
    with pytest.raises(CircuitError, match=message):
        load_splits(numbered, **more)


def test_text_labels_and_folders_read_by_datasets_have_the_same_doubt(tmp_path, numbered):
    import datasets

    file = write_parquet(tmp_path / "x.parquet", [*NUMBERS] * 5)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(numbered))
    for source in (file, loaded):
        with pytest.warns(UserWarning, match=DOUBTFUL):
            load_splits(source)
    with pytest.warns(UserWarning, match=DOUBTFUL + r".*Say the order with class_names=\[…\]"):
        pictures(list(NUMBERS))


@pytest.mark.parametrize("names", [("01", "02", "10"), ("ant", "bee"), ("a2", "a10"), ("b", "a")])
def test_an_order_without_doubt_is_not_warned_of(names):
    assert pictures([0, 1], class_names=names).class_names == names


def test_whole_numbers_are_in_their_own_order():
    assert pictures([10, 2, 1]).class_names == ("1", "2", "10")


# Composed and decomposed letters (case 7)


def test_accents_are_compared_as_people_see_them_wherever_classes_are_named(tmp_path):
    write_folder(tmp_path / "x" / "train", (COMPOSED, "dog"))
    write_folder(tmp_path / "x" / "val", (APART, "dog"), count=4)
    for more in ({}, {"classes": [APART, "dog"]}, {"model": vit_of((APART, "dog"))}):
        splits = load_splits(tmp_path / "x", **more)
        assert splits.train.class_names == (COMPOSED, "dog")
        assert splits.test.labels.bincount().tolist() == [4, 4]
    train = splits.train
    for name in (COMPOSED, APART):
        pairs = Pairs.by_class(train, clean=name, corrupt="dog", count=3)
        assert pairs.labels.tolist() == [0, 0, 0]
        kinds = {name: APART, "dog": "pet"}
        pairs = Pairs.by_category(train, kinds, clean=COMPOSED, corrupt="pet", count=3)
        assert pairs.labels.tolist() == [0, 0, 0]
        assert place_of(name, train.class_names) == 0


def test_accents_are_composed_in_sets_tables_and_preprocessings(tmp_path):
    import datasets

    assert cv.Preprocessing(class_names=[APART]).class_names == (COMPOSED,)
    assert ImageSet(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), (APART,)).class_names == (
        COMPOSED,
    )
    assert pictures([0, 1], class_names=["a", APART]).class_names == ("a", COMPOSED)
    assert pictures([APART, COMPOSED, "a"]).labels.tolist() == [0, 0, 1]
    file = write_parquet(tmp_path / "x.parquet", [APART, COMPOSED] * 10)
    with pytest.warns(UserWarning, match="one class"):
        assert load_splits(file).train.class_names == (COMPOSED,)
    typed = datasets.Dataset.from_parquet(str(write_parquet(tmp_path / "y.parquet", [0, 1] * 10)))
    typed = typed.cast_column("label", datasets.ClassLabel(names=["a", APART]))
    assert load_splits(typed).train.class_names == ("a", COMPOSED)


def test_splits_that_number_their_classes_otherwise_are_matched_by_name(tmp_path):
    import datasets

    rows = datasets.Dataset.from_parquet(str(write_parquet(tmp_path / "x.parquet", [0, 1] * 10)))
    train = rows.cast_column("label", datasets.ClassLabel(names=["ant", APART]))
    test = rows.select(range(4)).cast_column("label", datasets.ClassLabel(names=[COMPOSED, "ant"]))
    splits = load_splits(datasets.DatasetDict(train=train, test=test))
    assert splits.test.labels.tolist() == [1, 0, 1, 0]


# Classes that the training images lack (case 11)


def test_a_class_that_only_validation_has_is_refused_and_the_advice_works(tmp_path):
    write_folder(tmp_path / "x" / "train", ("cat", "dog"))
    write_folder(tmp_path / "x" / "val", ("cat", "Dog", "dog"), count=4)
    with pytest.raises(
        CircuitError,
        match=r"4 validation images are of 'Dog' \(nearest: 'dog' for 'Dog'\); the training images "
        r"have 'cat', 'dog'.*classes=\['cat', 'dog'\]",
    ):
        load_splits(tmp_path / "x")
    assert len(load_splits(tmp_path / "x", classes=["cat", "dog"]).test) == 8
    assert load_splits(tmp_path / "x", split="train").train.class_names == ("cat", "dog")
    model = vit_of(("cat", "dog", "Dog"))  # which has learnt the class elsewhere
    assert load_splits(tmp_path / "x", model=model).test.labels.bincount().tolist() == [4, 4, 4]


def test_a_declared_class_without_training_images_is_named(tmp_path):
    import datasets

    rows = datasets.Dataset.from_parquet(str(write_parquet(tmp_path / "x.parquet", [0, 1] * 10)))
    rows = rows.cast_column("label", datasets.ClassLabel(names=["ant", "bee", "cow"]))
    test = rows.select(range(4)).map(lambda row: {"label": 2})
    with pytest.warns(UserWarning, match=r"no training images of 1 of 3 classes \(cow\)"):
        load_splits(datasets.DatasetDict(train=rows, test=test))


# WordNet ids (case 21)


WNIDS = ("n01440764", "n02102040", "n03000684")


@pytest.mark.parametrize(
    "names",
    [
        ("tench", "English springer", "chain saw"),
        ("tench, Tinca tinca", "English_Springer", "chainsaw"),
        ("chain saw, chainsaw", "tench", "English springer, English springer spaniel"),
    ],
)
def test_folders_of_wordnet_ids_are_matched_to_names_and_names_to_ids(tmp_path, names):
    pytest.importorskip("timm", reason="timm knows ImageNet's names")
    write_folder(tmp_path / "nette", WNIDS)
    found = load_splits(tmp_path / "nette", model=vit_of(names)).train
    assert found.class_names == names
    codes, _ = matched((np.arange(3), WNIDS), names)
    first = [names[code].split(",")[0].casefold().replace("_", " ") for code in codes]
    assert first[:2] == ["tench", "english springer"]
    back, _ = matched((np.arange(3), names), WNIDS)
    assert [WNIDS[back[code]] for code in codes] == list(WNIDS)


def test_all_wordnet_ids_are_at_their_places_in_a_model_of_imagenet():
    timm = pytest.importorskip("timm", reason="timm knows ImageNet's names")
    from torchvision.models import ViT_B_16_Weights

    info = timm.data.ImageNetInfo()
    torchvisions = tuple(ViT_B_16_Weights.DEFAULT.meta["categories"])  # has `crane bird`
    for names in (torchvisions, tuple(info.label_descriptions())):
        codes, _ = matched((np.arange(1000), tuple(info.label_names())), names)
        assert codes.tolist() == list(range(1000))


def test_what_is_advised_for_other_names_is_what_works(tmp_path):
    write_folder(tmp_path / "nette", WNIDS)
    model = vit_of(("cat", "cow", "dog"))
    with pytest.raises(CircuitError, match=r"'n01440764'.*Rename them, or take labels by index"):
        load_splits(tmp_path / "nette", model=model)
    model.preprocessing = cv.Preprocessing(class_names=None)
    assert load_splits(tmp_path / "nette", model=model).train.class_names == WNIDS
    with pytest.raises(CircuitError) as caught:
        load_splits(tmp_path / "nette", model=vit_of(tuple("abcd")))
    assert re.search(r"Rename them as the model's are called\.$", str(caught.value))
    (tmp_path / "nette" / WNIDS[0]).rename(tmp_path / "nette" / "a")
    with pytest.raises(CircuitError, match=r"Rename them, or keep those that match with classes="):
        load_splits(tmp_path / "nette", model=vit_of(tuple("abcd")))
    assert load_splits(tmp_path / "nette", model=vit_of(tuple("abcd")), classes=["a"]).train


@settings(deadline=None)
@given(names=st.lists(st.text("ab01_²", max_size=4), unique=True))
def test_names_sort_by_their_numbers_whatever_they_are(names):
    """Also a name beside the same name with a number, and digits that are no decimal ones."""
    found = sorted(names, key=natural_key)
    assert sorted(found) == sorted(names)
    assert sorted([f"a{number}" for number in (10, 9, 100)], key=natural_key) == [
        "a9",
        "a10",
        "a100",
    ]


@pytest.mark.parametrize("names", [("cat", "cat2"), ("a", "a1", "b"), ("x²", "x2")])
def test_a_name_beside_the_same_name_with_a_number_loads(names):
    pixels = np.zeros((len(names), 4, 4))
    images = cv.ImageSet.from_arrays(pixels, list(names))
    assert images.class_names == tuple(sorted(names))


@pytest.mark.parametrize("names", [None, "abc", (1, 2, 3)])
def test_class_names_of_an_image_set_are_texts(names):
    with pytest.raises(cv.CircuitError, match="class_names is .*, expected a name for each class"):
        cv.ImageSet(torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.long), names)


def test_a_class_declared_in_two_ways_of_writing_is_one():
    import datasets

    rows = {"image": [np.full((4, 4, 3), 9, np.uint8)] * 3, "label": [0, 1, 2]}
    names = [unicodedata.normalize("NFC", "Café"), "Bar", unicodedata.normalize("NFD", "Café")]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    splits = load_splits(datasets.Dataset.from_dict(rows, features=features), split="train")
    assert splits.train.class_names == ("Café", "Bar")


def test_arrays_in_a_column_called_image_are_told_where_to_go():
    import datasets

    features = datasets.Features(
        image=datasets.Array3D((4, 4, 3), "uint8"), label=datasets.ClassLabel(names=["a", "b"])
    )
    rows = {"image": np.zeros((4, 4, 4, 3), np.uint8), "label": [0, 1, 0, 1]}
    with pytest.raises(CircuitError, match=r"'image' holds Array3D.*ImageSet.from_arrays"):
        load_splits(datasets.Dataset.from_dict(rows, features=features))
