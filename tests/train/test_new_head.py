"""A new head on an old body."""

import json
from dataclasses import replace

import pytest
import torch
from random_models import random_images, random_vit, shape
from small_training import blobs, make_vit

import circuitvit as cv
from circuitvit.train import with_new_head


@pytest.mark.parametrize("name", ["uniform", "class and mean"])
def test_only_the_head_is_new_and_the_model_is_left_alone(name):
    vit = random_vit(shape(name))
    vit.preprocessing = cv.Preprocessing(mean=(0.3,), class_names=tuple("abcd"))
    before, images = vit.fingerprint(), random_images(vit, 3)
    new = with_new_head(vit, 7, seed=1)
    assert new(images).shape == (3, 7)
    own = vit.state_dict()
    for key, value in new.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, own[key])
        assert value.dtype == own[key].dtype
    assert new.preprocessing == cv.Preprocessing(mean=(0.3,))
    assert not new.training
    drawn = new.head.weight
    assert 0.01 < drawn.std() < 0.03
    assert not new.head.bias.any()
    with torch.no_grad():
        new.positions.zero_()
    assert vit.fingerprint() == before
    assert torch.equal(with_new_head(vit, 7, seed=1).head.weight, drawn)
    assert not torch.equal(with_new_head(vit, 7, seed=2).head.weight, drawn)


def test_a_new_head_takes_names_and_refuses_those_that_do_not_fit(as_users_call):
    vit = random_vit(shape())
    with pytest.raises(cv.CircuitError, match=r"this model has none. Assign cv.Preprocessing"):
        cv.with_new_head(vit, 3, class_names=["a", "b", "c"])
    vit.preprocessing = cv.Preprocessing(mean=(0.3,), class_names=tuple("wxyz"))
    named = cv.with_new_head(vit, 3, class_names=["a", "b", "c"])
    assert named.preprocessing == cv.Preprocessing(mean=(0.3,), class_names=("a", "b", "c"))
    assert vit.preprocessing.class_names == tuple("wxyz")
    for classes, names, words in (
        (3, ["a", "b"], "2 class names for 3 classes"),
        (2, ["a", "a"], "two classes have the same name"),
        (0, None, "classes is 0, expected ≥ 1"),
        ("3", None, "classes is '3', expected a whole number"),
    ):
        with pytest.raises(cv.CircuitError, match=words):
            cv.with_new_head(vit, classes, class_names=names)
    with pytest.raises(cv.CircuitError, match="expected a circuitvit.ViT, got Linear"):
        cv.with_new_head(torch.nn.Linear(2, 2), 3)


# Case 4 of the field's reports: training on other classes than the head's

RECIPE = cv.Recipe(epochs=1, batch=8)
SEEN = cv.Preprocessing(mean=(0.3,), std=(0.4,), interpolation="bilinear", crop=0.875)


def images_of(names, preprocessing=None):
    found = blobs(24, classes=len(names))
    return cv.ImageSet(found.images, found.labels, tuple(names), preprocessing)


def knowing(names, classes=None):
    vit = make_vit(classes=classes or len(names))
    vit.preprocessing = replace(SEEN, class_names=tuple(names))
    return vit


def test_a_thousand_classes_are_not_trained_on_three_but_a_new_head_is(tmp_path):
    vit = knowing([f"class {i}" for i in range(1000)])
    images = images_of("abc", replace(SEEN, class_names=tuple("abc")))
    with pytest.raises(cv.CircuitError) as refusal:
        cv.train(vit, images, images, RECIPE)
    assert "the images are of 3 classes and the model has 1000; give it a new head first, " in str(
        refusal.value
    )
    assert "cv.with_new_head(vit, classes=3)" in str(refusal.value)
    trained = cv.train(cv.with_new_head(vit, classes=3), images, images, RECIPE).vit
    assert trained.config.classes == 3
    trained.save_pretrained(tmp_path)
    for loaded in (trained, cv.ViT.from_pretrained(tmp_path), cv.load_vit(tmp_path)):
        assert loaded.preprocessing == replace(SEEN, class_names=tuple("abc"))


@pytest.mark.parametrize("tune", ["all", "head", "adapter"])
@pytest.mark.parametrize("preprocessing", [None, SEEN, replace(SEEN, class_names=tuple("abc"))])
def test_a_head_of_other_classes_is_not_renamed(tune, preprocessing):
    images = images_of("abc", preprocessing)
    recipe = replace(RECIPE, tune=tune)
    with pytest.raises(
        cv.CircuitError,
        match=r"other classes \(a, b, c\) than the model \(x, y, z\); give it a new head "
        r"first, cv.with_new_head.vit, classes=3.; or, if these are other names",
    ):
        cv.train(knowing("xyz"), images, images, recipe)
    with pytest.raises(cv.CircuitError, match=r"another order \(a, b, c\) than .*model=vit"):
        cv.train(knowing("bca"), images, images, recipe)
    trained = cv.train(knowing("abc"), images, images, recipe).vit
    assert trained.preprocessing == replace(SEEN, class_names=tuple("abc"))


def test_a_model_without_names_takes_those_of_the_images_and_accents_may_be_written_either_way():
    vit = make_vit(classes=2)
    vit.preprocessing = SEEN
    images = images_of(["Café", "Tee"])
    assert cv.train(vit, images, images, RECIPE).vit.preprocessing.class_names == ("Café", "Tee")
    cv.train(knowing(["Cafe\N{COMBINING ACUTE ACCENT}", "Tee"]), images, images, RECIPE)


def test_a_compiled_circuits_head_is_made_new_before_it_is_compiled():
    vit = knowing("wxyz")
    edge = cv.compile(vit, cv.Circuit(vit.config, ["embed->m0", "m0->logits"]), level="edge")
    images = images_of("abc")
    with pytest.raises(cv.CircuitError, match="compiled from a new head with cv.with_new_head"):
        cv.train(edge, images, images, RECIPE)


def test_names_that_do_not_fit_are_dropped_with_a_warning_and_mean_and_std_stay(tmp_path):
    vit = knowing("abc", classes=4)
    words = r"3 class names for 4 classes. Mean and std stay. Assign dataclasses.replace"
    with pytest.warns(UserWarning, match=words) as caught:
        vit.save_pretrained(tmp_path / "vit")
    assert caught[0].filename == __file__
    assert cv.ViT.from_pretrained(tmp_path / "vit").preprocessing == SEEN
    written = json.loads((tmp_path / "vit" / "config.json").read_text())  # by an older version
    written["preprocessing"]["class_names"] = list("abc")
    (tmp_path / "vit" / "config.json").write_text(json.dumps(written))
    for load in (cv.ViT.from_pretrained, cv.load_vit):
        with pytest.warns(UserWarning, match="3 class names for 4 classes"):
            assert load(tmp_path / "vit").preprocessing == SEEN
    with pytest.warns(UserWarning, match="3 class names for 4 classes"):
        assert cv.load_vit(vit).preprocessing == SEEN
    vit.preprocessing = "imagenet"
    with pytest.raises(cv.CircuitError, match="is 'imagenet', expected a cv.Preprocessing"):
        vit.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_applied_adapter_has_its_own_classes_and_the_backbones_mean_and_std():
    vit = knowing("wxyz")
    images = images_of("abc")
    recipe = replace(RECIPE, tune="adapter")
    adapter = cv.train(cv.with_new_head(vit, classes=3), images, images, recipe).adapter
    bare = replace(adapter, preprocessing=None)
    for one in (adapter, bare):
        applied = one.apply(vit)
        assert applied.preprocessing == replace(SEEN, class_names=tuple("abc"))
        assert applied(images.images[:2]).shape == (2, 3)


def test_true_is_no_number_of_classes(as_users_call):
    with pytest.raises(cv.CircuitError, match="classes is True, expected a whole number"):
        cv.with_new_head(random_vit(shape()), True)
