"""Image processors of transformers: what they do to a picture, or why they are left out."""

import json

import pytest
import torch
from foreign_models import a_transformers
from PIL import Image

import circuitvit as cv
from circuitvit.pretrained import examine
from circuitvit.pretrained.processor import as_preprocessing
from circuitvit.pretrained.reading import distinct

PLAIN = {"size": {"height": 4, "width": 4}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_rescale": False, "image_mean": [100.0, 110, 120], "image_std": [50.0] * 3},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 0.5, "do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_rescaling_of_any_kind_ends_in_the_same_numbers(changes):
    from transformers import ViTImageProcessor

    values = PLAIN | changes
    draw = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=torch.Generator())
    picture = Image.fromarray(draw.numpy())
    expected = ViTImageProcessor(**values)(picture, return_tensors="pt")["pixel_values"][0]
    seen = as_preprocessing(values)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (seen.mean, seen.std))
    found = (draw.permute(2, 0, 1) / 255 - mean) / std
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


WRONG = {
    "it holds a list, expected named fields": [],
    "do_rescale is 'no', expected true or false": {"do_rescale": "no"},
    "rescale_factor is 0, expected a number > 0": {"rescale_factor": 0},
    "rescale_factor is 'x'": {"rescale_factor": "x"},
    "image_mean is 'grey', expected one number a channel": {"image_mean": "grey"},
    "image_std is .'a'., expected one number": {"image_std": ["a"]},
    "size is 'big', expected pixels; crop_size is .'height': 'x'.": {
        "size": "big",
        "crop_size": {"height": "x"},
    },
    "resample is 9, expected one of": {"resample": 9},
    r"std is \(0.0, 0.0, 0.0\), expected finite numbers > 0": {"image_std": [0, 0, 0]},
    "rescale_offset shifts pixels": {"rescale_offset": True},
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_is_not_understood_is_left_out_with_the_reason(reason, tmp_path):
    a_transformers("ViT").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(WRONG[reason]))
    with pytest.raises(cv.CircuitError, match=reason):
        as_preprocessing(WRONG[reason])
    found = examine(tmp_path)
    assert found.vit.preprocessing is None
    assert any("preprocessor_config.json is left out" in note for note in found.folded)


def test_class_names_without_a_processor_come_with_a_warning(tmp_path):
    module = a_transformers("Dinov2")
    module.config.id2label = dict(enumerate("vwxyz"))
    module.save_pretrained(tmp_path)
    for source in (module, tmp_path):
        with pytest.warns(UserWarning, match="not known: it has class names, but no image proc"):
            vit = cv.load_vit(source)
        assert vit.preprocessing == cv.Preprocessing(class_names=tuple("vwxyz"))
    assert "mean and std of images taken as 0.5" in str(examine(tmp_path).folded)
    torch.save(module.state_dict(), tmp_path / "again.pt")
    assert cv.load_vit(tmp_path, checkpoint=tmp_path / "again.pt").preprocessing is None
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.warns(UserWarning, match="how this model's images were normalised is not known"):
        assert cv.load_vit(tmp_path).preprocessing.class_names == tuple("vwxyz")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PLAIN))
    assert cv.load_vit(tmp_path).preprocessing.mean == (0.4, 0.5, 0.6)


def test_class_names_end_up_distinct_whatever_they_are():
    assert distinct(["a", "b", "a"]) == ("a (0)", "b", "a (2)")
    for names in (["a", "a", "a (0)"], ["a (0)", "a", "a", "a (0)"], ["a", "a", "a (0)", "a (0)"]):
        assert len(set(distinct(names))) == len(names)
