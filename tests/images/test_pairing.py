"""Which images are paired: only right ones, even over classes, across classes or categories."""

import numpy as np
import pytest
import torch
from random_models import random_images, random_vit, shape

from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs
from circuitvit.images.pairs.pairing import Judge, class_index

NAMES = ("beagle", "robin", "trout", "poodle")
CATEGORIES = {"beagle": "dog", "poodle": "dog", "robin": "bird", "trout": "fish"}


def image_set(labels) -> ImageSet:
    """Images whose every pixel is their own place."""
    places = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1, 1, 1)
    return ImageSet(places.repeat(1, 1, 2, 2), torch.as_tensor(labels), NAMES)


def drawn_images(count=200, seed=0) -> ImageSet:
    return image_set(np.random.default_rng(seed).integers(0, 4, count))


class Model:
    """Right for the images that a mask names; counts the images it is shown."""

    def __init__(self, images: ImageSet, right: np.ndarray) -> None:
        self.images, self.right, self.shown = images, right, 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.shown += len(batch)
        places = batch[:, 0, 0, 0].long()
        own = self.images.labels[places]
        guess = torch.where(torch.from_numpy(self.right)[places], own, (own + 1) % 4)
        return torch.nn.functional.one_hot(guess, 4).float()


def places(tensor: torch.Tensor) -> list[int]:
    return tensor[:, 0, 0, 0].long().tolist()


def slow_draw(labels, right, count, seed):
    """All right images of each class in their drawn order, the classes taking turns."""
    everything = places(Pairs.by_class(image_set(labels), count=len(labels), seed=seed).clean)
    turns = list(dict.fromkeys(labels[place] for place in everything))
    queues = {
        label: [place for place in everything if labels[place] == label and right[place]]
        for label in turns
    }
    found = []
    while len(found) < count:
        found.extend(queues[label].pop(0) for label in turns if queues[label])
    return found[:count]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("accuracy", [0.9, 0.3])
def test_only_right_images_are_drawn_and_the_classes_take_turns(seed, accuracy):
    labels = np.random.default_rng(seed).integers(0, 4, 300)
    right = np.random.default_rng(seed + 50).random(300) < accuracy
    images = image_set(labels)
    pairs = Pairs.by_class(images, count=60, seed=seed, right_for=Model(images, right))
    assert places(pairs.clean) == slow_draw(labels, right, 60, seed)
    assert right[places(pairs.corrupt)].all()
    assert (pairs.labels != pairs.corrupt_labels).all()
    assert torch.equal(pairs.labels, images.labels[places(pairs.clean)])


def test_a_model_that_is_always_right_changes_nothing():
    images = drawn_images()
    plain = Pairs.by_class(images, count=50, seed=3)
    asked = Pairs.by_class(images, count=50, seed=3, right_for=Model(images, np.ones(200, bool)))
    assert asked.fingerprint() == plain.fingerprint()


def test_a_model_and_its_mask_draw_the_same():
    images, right = drawn_images(), np.random.default_rng(1).random(200) < 0.6
    for mask in (right, torch.from_numpy(right)):
        by_mask = Pairs.by_class(images, clean="robin", count=10, right_for=mask)
        by_model = Pairs.by_class(images, clean="robin", count=10, right_for=Model(images, right))
        assert by_mask.fingerprint() == by_model.fingerprint()


def test_what_is_known_from_earlier_draws_changes_nothing():
    images, right = drawn_images(), np.random.default_rng(1).random(200) < 0.4
    judge = Judge(images, Model(images, right))
    for clean in ("trout", "beagle", "robin"):
        again = Pairs.by_class(images, clean=clean, count=10, right_for=judge)
        fresh = Pairs.by_class(images, clean=clean, count=10, right_for=Model(images, right))
        assert again.fingerprint() == fresh.fingerprint()


def test_the_model_is_asked_about_few_images():
    images = drawn_images(4000)
    model = Model(images, np.random.default_rng(2).random(4000) < 0.8)
    Pairs.by_class(images, count=40, right_for=model)
    assert model.shown < 150


def test_a_vit_is_run_as_it_is_and_without_gradients():
    vit = random_vit(shape(), dtype=torch.float64).train()
    seen = []
    vit.register_forward_hook(lambda _, __, logits: seen.append(logits.requires_grad))
    images = random_images(vit, 60).float()
    predicted = vit(images.double()).argmax(dim=-1)
    found = Pairs.occluded(
        ImageSet(images, predicted, NAMES), count=30, size=2, seed=1, right_for=vit
    )
    assert vit.training
    assert not any(seen[1:])
    logits = vit(found.clean.double())
    top = logits.topk(2).indices
    assert torch.equal(found.labels, top[:, 0])
    assert torch.equal(found.corrupt_labels, top[:, 1])


def test_corrupt_images_of_one_class_are_right_too():
    images, right = drawn_images(), np.random.default_rng(4).random(200) < 0.2
    pairs = Pairs.by_class(
        images, clean="beagle", corrupt="trout", count=5, right_for=Model(images, right)
    )
    assert right[places(pairs.corrupt)].all()
    assert set(pairs.corrupt_labels.tolist()) == {2}


def test_right_partners_are_all_equally_likely():
    images = image_set([0] * 400 + [1] * 20)
    right = np.ones(420, bool)
    right[400:415] = False
    pairs = Pairs.by_class(images, clean=0, count=400, right_for=Model(images, right))
    counts = np.bincount(places(pairs.corrupt), minlength=420)[400:]
    assert counts[:15].sum() == 0
    assert (abs(counts[15:] - 80) < 45).all()  # Binomial(400, 1/5) at 5.6 standard deviations


def test_too_few_right_images_are_told_class_by_class():
    images = image_set([0] * 10 + [1] * 8 + [2] * 6)
    right = np.array([True] * 4 + [False] * 6 + [True] * 3 + [False] * 5 + [False] * 6)
    with pytest.raises(CircuitError) as caught:
        Pairs.by_class(images, count=8, right_for=Model(images, right))
    for part in (
        "8 pairs were asked for, but of the 24 clean images the model gets only 7 right",
        "trout: 0, robin: 3, beagle: 4",
        "Ask for at most 7",
    ):
        assert part in str(caught.value)
    with pytest.raises(CircuitError) as caught:
        Pairs.by_class(images, right_for=Model(images, np.zeros(24, bool)))
    assert str(caught.value).startswith("of the 24 clean images the model gets only 0 right (beag")
    assert "asked for" not in str(caught.value)


def test_a_class_that_is_never_right_is_no_partner():
    images = image_set([0] * 10 + [1] * 10 + [2] * 10)
    right = np.array([True] * 10 + [False] * 10 + [True] * 10)
    pairs = Pairs.by_class(images, clean="beagle", count=10, right_for=Model(images, right))
    assert set(pairs.corrupt_labels.tolist()) == {2}
    with pytest.raises(CircuitError, match="gets no image of class 'robin' right"):
        Pairs.by_class(
            images, clean="beagle", corrupt="robin", count=3, right_for=Model(images, right)
        )
    with pytest.raises(CircuitError, match="gets no image of another class right"):
        Pairs.by_class(images, clean="beagle", count=3, right_for=Model(images, right & False | (
            np.arange(30) < 10)))  # fmt: skip


@pytest.mark.parametrize(
    ("right_for", "message"),
    [
        ("vit", "right_for is a str, expected a model"),
        (np.ones(3, bool), r"mask of bool and shape \(3,\), expected 200 truth values"),
        (torch.ones(200), r"mask of torch.float32 and shape \(200,\)"),
        (lambda x: x, r"right_for gave \(\d+, 1, 2, 2\) for \d+ images, expected logits"),
        (lambda x: [0], "right_for gave list for"),
        (torch.nn.Linear(3, 4), r"can't look at images of shape \(\d+, 1, 2, 2\): mat1 and mat2"),
        (lambda: None, r"right_for can't look at images.*positional argument"),
        (random_vit(shape()), r"image"),
        (lambda x: torch.zeros(len(x), 3), "logits of 3 classes, but the images' labels need 4"),
        (lambda x: torch.full((len(x), 4), torch.nan), "logits that are NaN"),
    ],
)
def test_what_cannot_judge_is_refused(right_for, message):
    with pytest.raises(CircuitError, match=message):
        Pairs.by_class(drawn_images(), count=20, right_for=right_for)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("make", [Pairs.by_class, Pairs.occluded, Pairs.noised])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 2.5}, "count is 2.5, expected a whole number"),
        ({"count": 2, "seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"count": 2, "seed": -1}, "seed is -1, expected a whole number ≥ 0"),
        ({"count": 0}, "0 pairs were asked for"),
        ({"count": 2, "images": torch.zeros(4, 1, 2, 2)}, "images are a Tensor, expected an Imag"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, asked, message):
    asked = {"images": drawn_images(), **asked}
    if make is Pairs.occluded:
        asked["size"] = 1
    with pytest.raises(CircuitError, match=message):
        make(**asked)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("clean", ["1", 1, np.int64(1), np.uint8(1), "robin"])
def test_a_class_is_named_or_numbered_also_as_text_and_by_numpy(clean):
    images = drawn_images()
    pairs = Pairs.by_class(images, clean=clean, corrupt="0", count=5)
    expected = Pairs.by_class(images, clean="robin", corrupt="beagle", count=5)
    assert pairs.fingerprint() == expected.fingerprint()
    assert Pairs.remake(pairs.recipe, images).fingerprint() == expected.fingerprint()


@pytest.mark.usefixtures("as_users_call")
def test_a_name_wins_over_a_number_and_must_be_of_one_class():
    images = image_set([0, 1, 2, 3] * 5)
    odd = ImageSet(images.images, images.labels, ("3", "crane", "crane", "0"))
    assert set(Pairs.by_class(odd, clean="0", count=5).labels.tolist()) == {3}
    with pytest.raises(CircuitError, match="clean is 'crane', as 2 classes are called.* 1 or 2"):
        Pairs.by_class(odd, clean="crane", count=5)
    for wrong in ("4", -1, True, 1.0, None, ["0"]):
        with pytest.raises(CircuitError, match="which is no class here"):
            class_index(odd, wrong, "clean")


# Categories


def kinds(labels) -> list[str]:
    return [CATEGORIES[NAMES[label]] for label in labels.tolist()]


def test_corrupt_images_come_from_another_category():
    images = drawn_images()
    pairs = Pairs.by_category(images, CATEGORIES, count=100)
    assert all(a != b for a, b in zip(kinds(pairs.labels), kinds(pairs.corrupt_labels)))  # noqa: B905
    counts = pairs.labels.bincount(minlength=4)
    assert counts.min() == counts.max() == 25
    assert len(set(places(pairs.clean))) == 100


def test_categories_can_be_named_for_both_sides():
    pairs = Pairs.by_category(drawn_images(), CATEGORIES, clean="dog", corrupt="fish", count=40)
    assert set(kinds(pairs.labels)) == {"dog"}
    assert set(pairs.labels.tolist()) == {0, 3}
    assert set(kinds(pairs.corrupt_labels)) == {"fish"}
    others = Pairs.by_category(drawn_images(), CATEGORIES, corrupt="dog", count=40)
    assert set(kinds(others.labels)) == {"bird", "fish"}
    assert set(others.corrupt_labels.tolist()) == {0, 3}


def test_the_other_categories_are_equally_likely_and_so_are_their_classes():
    images = image_set([2] * 800 + [1] * 5 + [0] * 90 + [3] * 3)
    pairs = Pairs.by_category(images, CATEGORIES, clean="fish", count=800)
    robin, beagle, poodle = (int((pairs.corrupt_labels == label).sum()) for label in (1, 0, 3))
    assert abs(robin - 400) < 71  # Binomial(800, ½) at five standard deviations
    assert abs(beagle - 200) < 62
    assert abs(poodle - 200) < 62


def test_categories_take_right_images_only():
    images, right = drawn_images(), np.random.default_rng(5).random(200) < 0.4
    pairs = Pairs.by_category(images, CATEGORIES, count=30, right_for=Model(images, right))
    assert right[places(pairs.clean)].all()
    assert right[places(pairs.corrupt)].all()
    only_dogs = np.isin(images.labels.numpy(), (0, 3))
    with pytest.raises(CircuitError, match="no image of category 'fish' right"):
        Pairs.by_category(
            images, CATEGORIES, clean="dog", corrupt="fish", count=3, right_for=only_dogs
        )


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("categories", "asked", "message"),
    [
        ({"beagle": "dog", "robin": "bird"}, {}, "no category is given for 2 classes.*trout, pood"),
        (CATEGORIES, {"clean": "cat"}, "clean is 'cat', expected a category.*dog, bird, fish"),
        (CATEGORIES, {"clean": "dog", "corrupt": "dog"}, "both 'dog'"),
        (dict.fromkeys(NAMES, "animal"), {}, "all images are of one category"),
        (["dog"], {}, "categories are a list, expected a mapping"),
        ({**CATEGORIES, "robin": ["bird"]}, {}, r"a category is \['bird'\], expected a mapping"),
        (CATEGORIES, {"clean": ["dog"]}, r"clean is \['dog'\], expected a category"),
        (CATEGORIES, {"clean": "bird", "count": 999}, "999 pairs were asked for"),
    ],
)
def test_categories_that_cannot_be_paired_are_refused(categories, asked, message):
    with pytest.raises(CircuitError, match=message):
        Pairs.by_category(drawn_images(), categories, **{"count": 5, **asked})


def test_a_class_without_images_needs_no_category():
    images = image_set([0, 1, 0, 1])
    assert len(Pairs.by_category(images, {"beagle": "dog", "robin": "bird"}, count=4)) == 4


def test_images_of_one_class_are_taken_alone():
    pairs = Pairs.against_mean(drawn_images(), clean="trout", count=10)
    assert set(pairs.labels.tolist()) == {2}
    with pytest.raises(CircuitError, match="clean is 'cat'"):
        Pairs.against_mean(drawn_images(), clean="cat", count=10)


def test_the_animals_of_tiny_imagenet_need_no_categories():
    images = image_set([0, 1, 2] * 5)
    zoo = ImageSet(images.images, images.labels, ("lion", "bullfrog", "tabby"))
    pairs = Pairs.by_category(zoo, clean="cats", corrupt="amphibians", count=6)
    assert set(pairs.labels.tolist()) == {0, 2}
    assert set(pairs.corrupt_labels.tolist()) == {1}
    assert Pairs.remake(pairs.recipe, zoo).fingerprint() == pairs.fingerprint()


def test_without_a_count_there_are_64_pairs_or_all_there_are():
    images = drawn_images()
    for made in (Pairs.by_class, Pairs.noised, Pairs.against_mean):
        pairs = made(images)
        assert (len(pairs), pairs.recipe["arguments"]["count"]) == (64, 64)
        assert torch.equal(pairs.clean, made(images, count=64).clean)
    pairs = Pairs.by_category(images, CATEGORIES)
    assert (len(pairs), pairs.recipe["arguments"]["count"]) == (64, 64)
    few = images.subset(range(30))
    pairs = Pairs.by_class(few)
    assert sorted(places(pairs.clean)) == list(range(30)), "all there are"
    assert pairs.recipe["arguments"]["count"] == 30
    right = np.arange(200) % 5 == 0
    pairs = Pairs.by_class(images, right_for=Model(images, right))
    assert sorted(places(pairs.clean)) == list(range(0, 200, 5)), "all right ones there are"
    assert len(Pairs.by_class(images, clean="robin", corrupt="trout", count=3)) == 3
    with pytest.raises(CircuitError, match="31 pairs were asked for, but there are 30 clean"):
        Pairs.by_class(few, count=31)
    with pytest.raises(CircuitError, match="the model gets only 0 right"):
        Pairs.by_class(few, right_for=np.zeros(30, bool))
