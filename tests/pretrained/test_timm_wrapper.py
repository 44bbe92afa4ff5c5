"""transformers' wrapper for timm: its preprocessing and class names arrive, or are missed aloud."""

import json

import pytest
import torch
from foreign_models import a_transformers

import circuitvit as cv
from circuitvit.pretrained import examine

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

LOOKS = dict(
    mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bilinear", crop_pct=0.9,
    crop_mode="squash", input_size=[3, 160, 160],
)  # fmt: skip
SEEN = cv.Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "squash", 0.9, ("a", "b"))


def wrapped(names=None, **config):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    module = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="test_vit", num_labels=2, **config)
    )
    if names:
        module.config.id2label = dict(enumerate(names))
        module.config.label2id = {name: index for index, name in enumerate(names)}
    return module


def test_what_the_wrapper_says_arrives_from_module_and_folder(tmp_path):  # case 3
    module = wrapped("ab", pretrained_cfg=LOOKS)
    module.save_pretrained(tmp_path)
    assert "label_names" in json.loads((tmp_path / "config.json").read_text())
    loaded = type(module).from_pretrained(tmp_path)
    for source in (module, tmp_path, loaded, torch.nn.DataParallel(loaded)):
        assert cv.load_vit(source).preprocessing == SEEN
    again = examine(tmp_path, checkpoint=tmp_path / "model.safetensors").vit
    assert again.preprocessing == cv.Preprocessing(*[*vars(SEEN).values()][:5])
    assert again.fingerprint() == cv.load_vit(module).fingerprint()


def test_an_image_processor_beside_the_wrapper_comes_first(tmp_path):
    wrapped("ab", pretrained_cfg=LOOKS).save_pretrained(tmp_path)
    given = {"image_mean": [0.3] * 3, "image_std": [0.2] * 3, "size": {"height": 8, "width": 8}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    seen = cv.load_vit(tmp_path).preprocessing
    assert (seen.mean, seen.class_names) == ((0.3,) * 3, ("a", "b"))


def test_fields_that_a_wrapper_leaves_out_are_as_timm_has_them():
    known = dict(input_size=[3, 160, 160])
    seen = cv.load_vit(wrapped("ab", pretrained_cfg=known)).preprocessing
    expected = timm.data.resolve_data_config(known)
    assert (seen.mean, seen.std) == (expected["mean"], expected["std"])
    assert (seen.crop, seen.interpolation) == (expected["crop_pct"], expected["interpolation"])


def test_what_a_wrapper_does_not_say_is_said_to_be_missing():
    found = examine(wrapped())
    assert any("how its images were normalised is not known" in note for note in found.folded)
    assert found.vit.preprocessing.class_names is None
    with pytest.warns(UserWarning, match="not known: .* timm's values for the architecture are"):
        assert cv.load_vit(wrapped("ab")).preprocessing.class_names == ("a", "b")


def test_values_of_timm_that_can_not_be_said_are_named():
    odd = dict(crop_mode="border", interpolation="hamming")
    message = "interpolation 'hamming' .*bicubic is taken; crop_mode 'border' .*'center' is taken"
    plain = timm.create_model("test_vit", num_classes=2)
    plain.pretrained_cfg |= odd
    for module in (wrapped("ab", pretrained_cfg=LOOKS | odd), plain):
        with pytest.warns(UserWarning, match=message):
            cv.load_vit(module)


def test_the_wrapper_without_a_head_is_refused():
    from transformers import TimmWrapperConfig, TimmWrapperModel

    with pytest.raises(cv.CircuitError, match=r"there is no head \(num_classes=0\)"):
        cv.load_vit(TimmWrapperModel(TimmWrapperConfig(architecture="test_vit")))


def test_names_that_do_not_fit_are_left_out_aloud_and_the_rest_stays():
    module = timm.create_model("test_vit", num_classes=2)
    module.pretrained_cfg |= LOOKS | {"label_names": ["x", "y", "z"]}
    with pytest.warns(
        UserWarning, match="its own class names are left out: there are 3 class names for 2 classes"
    ):
        seen = cv.load_vit(module).preprocessing
    assert seen == cv.Preprocessing(*[*vars(SEEN).values()][:5])
    other = a_transformers("ViT")
    other.config.id2label = dict(enumerate("abc"))
    with pytest.warns(UserWarning, match="its own class names are left out: there are 3"):
        assert cv.load_vit(other).preprocessing.class_names is None


def test_older_models_of_timm_have_a_default_cfg():
    module = timm.create_model("test_vit", num_classes=2)
    del module.pretrained_cfg
    module.default_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert cv.load_vit(module).preprocessing.mean == (0.1, 0.2, 0.3)
    del module.default_cfg
    assert cv.load_vit(module).preprocessing is None


DICTS = [
    {"0": "u", "1": "v", "2": "w"},
    {"2": "w", "0": "u", "1": "v"},
    {1: "v", 2: "w", 0: "u"},
    {"u": 0, "w": 2, "v": 1},
    ["u", "v", "w"],
]


@pytest.mark.parametrize("labels", DICTS)
def test_label_names_may_be_a_dict_by_index(labels, tmp_path):
    module = timm.create_model("test_vit", num_classes=3)
    module.pretrained_cfg["label_names"] = labels
    assert cv.load_vit(module).preprocessing.class_names == ("u", "v", "w")
    config = {"architecture": "test_vit", "num_classes": 3, "label_names": labels,
              "pretrained_cfg": {"mean": [0.1] * 3}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    assert cv.load_vit(tmp_path).preprocessing.class_names == ("u", "v", "w")


def test_label_names_that_leave_classes_out_are_named():
    module = timm.create_model("test_vit", num_classes=3)
    for labels in ({"0": "u", "2": "w"}, {"a": "u"}, "uvw"):
        module.pretrained_cfg["label_names"] = labels
        with pytest.warns(UserWarning, match="label_names of its pretrained_cfg don't name each"):
            assert cv.load_vit(module).preprocessing.class_names is None


def test_numbers_of_wordnet_are_called_by_their_descriptions():
    module = timm.create_model("test_vit", num_classes=2)
    numbers = ["n01440764", "n01443537"]
    module.pretrained_cfg["label_names"] = numbers
    assert cv.load_vit(module).preprocessing.class_names == tuple(numbers)
    told = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius"}
    module.pretrained_cfg["label_descriptions"] = told
    assert cv.load_vit(module).preprocessing.class_names == ("tench", "goldfish")
    module.pretrained_cfg["label_names"] = ["tench", "goldfish"]
    module.pretrained_cfg["label_descriptions"] = {"tench": "a fish", "goldfish": "another"}
    assert cv.load_vit(module).preprocessing.class_names == ("tench", "goldfish")


def test_names_of_a_wrappers_pretrained_cfg_count_where_the_config_only_counts(tmp_path):
    for labels in (["u", "v"], {"1": "v", "0": "u"}):
        module = wrapped(pretrained_cfg=LOOKS | {"label_names": labels})
        assert cv.load_vit(module).preprocessing.class_names == ("u", "v")
    config = {"architectures": ["TimmWrapperForImageClassification"], "architecture": "test_vit",
              "model_type": "timm_wrapper", "num_classes": 2, "label_names": {"1": "v", "0": "u"},
              "pretrained_cfg": LOOKS}  # fmt: skip
    module.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cv.load_vit(tmp_path).preprocessing.class_names == ("u", "v")
