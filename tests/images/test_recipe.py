"""Recipes: pairs made again bit for bit, and circuits that are found again from their file."""

import json
from dataclasses import replace

import pytest
import torch
from random_models import random_images, random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.errors import CircuitError
from circuitvit.images import ImageSet, Pairs

NAMES = ("cat", "dog", "trout", "pike")
CATEGORIES = {"cat": "mammal", "dog": "mammal", "trout": "fish", "pike": "fish"}


def vit_and_images(count=200):
    """A model of all four classes, and images of which it gets one in four wrong."""
    vit = random_vit(shape(), dtype=torch.float32)
    images = random_images(vit, count)
    with torch.no_grad():
        vit.head.bias -= vit(images).mean(dim=0)
        predicted = vit(images).argmax(dim=-1)
    labels = torch.where(torch.arange(count) % 4 == 0, (predicted + 1) % 4, predicted)
    return vit, ImageSet(images, labels, NAMES)


VIT, IMAGES = vit_and_images()
MADE = {
    "by_class": lambda **k: Pairs.by_class(IMAGES, count=12, **k),
    "by_class, two classes": lambda **k: Pairs.by_class(IMAGES, clean="dog", corrupt=2, count=4, **k),
    "by_category": lambda **k: Pairs.by_category(IMAGES, CATEGORIES, clean="fish", count=6, **k),
    "occluded": lambda **k: Pairs.occluded(IMAGES, count=12, size=2, **k),
    "occluded, blur, aligned": lambda **k: Pairs.occluded(
        IMAGES, count=12, fill="blur", size=2, align=2, **k
    ),
    "occluded, placed": lambda **k: Pairs.occluded(IMAGES, count=9, size=0.5, place=(1, 1), **k),
    "noised": lambda **k: Pairs.noised(IMAGES, count=12, std=0.3, **k),
    "against_mean": lambda **k: Pairs.against_mean(IMAGES, clean="trout", count=3, **k),
}  # fmt: skip


def same(one: Pairs, other: Pairs) -> bool:
    tensors = ("clean", "corrupt", "labels", "corrupt_labels")
    both = [(getattr(one, name), getattr(other, name)) for name in tensors]
    return all(a is b is None or (a is not None and torch.equal(a, b)) for a, b in both)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("right_for", [None, VIT])
def test_a_recipe_makes_the_same_pairs(name, right_for):
    pairs = MADE[name](seed=5, right_for=right_for)
    recipe = json.loads(json.dumps(pairs.recipe))
    assert recipe == pairs.recipe
    again = Pairs.remake(recipe, IMAGES)
    assert same(again, pairs)
    assert again.fingerprint() == pairs.fingerprint()
    assert again.recipe == pairs.recipe


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_follows_cuts_and_casts(name):
    pairs = MADE[name](seed=1)
    part = pairs.subset([2, 0, -1]).to(dtype=torch.float16).subset([1, 2]).to(dtype=torch.float64)
    again = Pairs.remake(part.recipe, IMAGES)
    assert again.clean.dtype == torch.float64
    assert same(again, part)
    assert part.recipe["casts"] == ["float16", "float64"]
    assert len(pairs.recipe["clean"]) == len(pairs)


def test_moving_to_where_they_are_is_no_cast():
    pairs = MADE["noised"]()
    assert pairs.to("cpu", torch.float32).recipe == pairs.recipe


def test_a_recipe_tells_what_was_asked_for():
    recipe = MADE["occluded, blur, aligned"](seed=7, right_for=VIT).recipe
    assert recipe["made"] == "occluded"
    assert recipe["arguments"] == {
        "clean": None, "count": 12, "fill": "blur", "size": 2, "place": None, "align": 2,
    }  # fmt: skip
    assert recipe["seed"] == 7
    assert recipe["images"] == IMAGES.fingerprint()
    assert recipe["right_for"] == f"ViT {VIT.fingerprint()}"
    assert recipe["corrupt"] is None


def test_other_images_are_refused():
    recipe = MADE["by_class"]().recipe
    others = ImageSet(IMAGES.images + 1, IMAGES.labels, NAMES)
    with pytest.raises(CircuitError) as caught:
        Pairs.remake(recipe, others)
    for part in (IMAGES.fingerprint(), others.fingerprint(), "Give the same images"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: None, "there is no recipe"),
        (lambda recipe: {}, "this is no recipe of pairs"),
        (lambda recipe: "by_class", "this is no recipe of pairs"),
        (lambda recipe: {**recipe, "casts": ["float3"]}, "altered or damaged"),
        (lambda recipe: {**recipe, "made": "by_moon"}, "says 'by_moon'.*Update circuitvit"),
        (lambda recipe: {**recipe, "clean": [999]}, "altered or damaged"),
        (lambda recipe: {**recipe, "corrupt": None}, "altered or damaged"),
        (lambda recipe: {**recipe, "made": "noised"}, "altered or damaged"),
        (lambda recipe: {**recipe, "made": "occluded"}, "altered or damaged"),
    ],
)
def test_what_is_no_recipe_is_refused(change, message):
    with pytest.raises(CircuitError, match=message):
        Pairs.remake(change(MADE["by_class"]().recipe), IMAGES)


@pytest.mark.usefixtures("as_users_call")
def test_a_recipe_needs_an_image_set():
    with pytest.raises(CircuitError, match="images are a Tensor, expected the ImageSet"):
        Pairs.remake(MADE["by_class"]().recipe, IMAGES.images)


def test_pairs_with_other_images_have_no_recipe():
    pairs = MADE["by_class"]()
    assert Pairs(clean=pairs.clean, corrupt=pairs.corrupt).recipe is None
    assert replace(pairs, clean=pairs.clean * 2).recipe is None
    assert random_pairs(VIT).recipe is None


# With circuits


def search(pairs: Pairs) -> cv.Circuit:
    return cv.acdc(VIT, pairs, tau=0.05)


def test_a_circuit_is_found_again_from_its_file(tmp_path):
    circuit = search(Pairs.occluded(IMAGES, count=6, size=2, seed=3, right_for=VIT))
    loaded = cv.Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert loaded.provenance == circuit.provenance
    pairs = Pairs.remake(loaded.provenance.pairs, IMAGES)
    assert pairs.fingerprint() == loaded.provenance.data
    again = search(pairs)
    assert again == circuit
    assert again.scores == circuit.scores
    assert again.provenance == circuit.provenance
    assert hash(again.provenance) == hash(circuit.provenance)


def test_scores_keep_the_recipe_too():
    pairs = MADE["by_class"]()
    for level in ("edge", "node"):
        scores = cv.eap(VIT, pairs, level=level)
        assert scores.provenance.pairs == pairs.recipe
        assert scores.top(3).provenance.pairs == pairs.recipe
    assert cv.eap(VIT, random_pairs(VIT)).provenance.pairs is None


def test_a_circuit_of_an_earlier_version_still_loads(tmp_path):
    circuit = search(random_pairs(VIT))
    path = circuit.save(tmp_path / "circuit.json")
    assert "pairs" not in json.loads(path.read_text())["provenance"]
    assert cv.Circuit.load(path).provenance == circuit.provenance


def test_a_page_tells_of_the_recipe_in_a_few_words(tmp_path):
    circuit = search(MADE["by_category"](seed=4))
    page = circuit.to_html(tmp_path / "circuit.html", plotlyjs="directory").read_text()
    assert "<dt>pairs</dt><dd>by_category, seed 4</dd>" in page
    assert "mammal" not in page


HOSTILE = (
    [], {}, None, True, -1, 1.5, 10**400, 10**5000, 2**63, 1e308, 1e-300, float("nan"), "", "\ud800",
    "x" * 10_000, [[1]], [None], [1e308], [True], ["1"], [-1], [[[]]] * 12, {"a": 1},
)  # fmt: skip


@pytest.mark.parametrize("name", ["by_class", "by_category", "occluded", "noised", "against_mean"])
@pytest.mark.filterwarnings("ignore:.* corrupt images equal")
def test_no_field_of_any_kind_is_an_error_of_another_type(name):
    recipe = MADE[name]().recipe
    lengths, inside = list[int](), [("arguments", key) for key in recipe["arguments"]]
    for field, key in [*inside, *((field, None) for field in recipe)]:
        for value in HOSTILE:
            changed = {**recipe[field], key: value} if key else value
            try:
                made = Pairs.remake({**recipe, field: changed}, IMAGES)
            except CircuitError as cause:
                lengths.append(len(str(cause)))
            else:
                assert len(made) == len(recipe["clean"])
    assert max(lengths) < 1000


def test_places_in_a_recipe_are_those_of_the_images_alone():
    recipe = MADE["by_class"]().recipe
    for field in ("clean", "corrupt"):
        for place in (-1, len(IMAGES), True, 1.0):
            with pytest.raises(CircuitError, match=f"{field} is .*places below {len(IMAGES)}"):
                Pairs.remake({**recipe, field: [*recipe[field][1:], place]}, IMAGES)
    noised = MADE["noised"]().recipe
    for std in (1e308, 10**400, [1], True):
        with pytest.raises(CircuitError, match="std is .*expected a number > 0"):
            Pairs.remake({**noised, "arguments": {"std": std}}, IMAGES)
    for std in (1e308, 10**400):
        with pytest.raises(CircuitError, match="std is .*expected a number > 0"):
            Pairs.noised(IMAGES, count=1, std=std)
