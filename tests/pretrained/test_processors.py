"""Image processors of transformers: what they do to a picture, or why they are left out."""

import json
import re
import warnings

import pytest
import torch
from foreign_models import a_transformers
from PIL import Image

import circuitvit as cv
from circuitvit.pretrained import examine
from circuitvit.pretrained.libraries.processors import as_preprocessing, not_understood
from circuitvit.pretrained.libraries.reading import distinct

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
    "rescale_offset=True, which shifts pixels": {"rescale_offset": True},
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_is_not_understood_is_left_out_with_the_reason(reason, tmp_path):
    a_transformers("ViT").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(WRONG[reason]))
    with pytest.raises(cv.CircuitError, match=reason):
        as_preprocessing(WRONG[reason])
    found = examine(tmp_path)
    whole = isinstance(WRONG[reason], dict) and not {"image_mean", "image_std"} & set(WRONG[reason])
    assert (found.vit.preprocessing is not None) == whole
    left = "these are left out" if whole else "preprocessor_config.json is left out"
    assert any("preprocessor_config.json" in note and left in note for note in found.folded)


def looks_at(tmp_path, **values):
    """Load a model with class names beside a processor; the model and what it warned of."""
    module = a_transformers("ViT")
    module.config.id2label = dict(enumerate("vwxyz"))
    module.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vit = cv.load_vit(tmp_path)
    return vit.preprocessing, [str(each.message) for each in told]


NUMBERS = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"height": 16, "width": 16}}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("rescale_offset", True, "rescale_offset=True, which shifts"),
     ("resample", "sharp", "resample is 'sharp', expected one of .*by number or name"),
     ("crop_pct", "most", "crop_pct is 'most'"), ("size", "big", "size is 'big'"),
     ("do_resize", 1, "do_resize is 1, expected true or false")],
)  # fmt: skip
def test_one_bad_key_leaves_the_others_and_is_named_with_its_file(key, value, reason, tmp_path):
    seen, told = looks_at(tmp_path, **(NUMBERS | {key: value}))
    assert (seen.mean, seen.std, seen.class_names) == ((0.1,) * 3, (0.2,) * 3, tuple("vwxyz"))
    assert len(told) == 1
    assert re.search(rf"image processor {tmp_path}/preprocessor_config.json, these are left out: "
                     rf"{reason}", told[0])  # fmt: skip
    torch.save(a_transformers("ViT").state_dict(), tmp_path / "again.pt")
    with pytest.warns(UserWarning, match="these are left out"):
        again = cv.load_vit(tmp_path, checkpoint=tmp_path / "again.pt").preprocessing
    assert (again.mean, again.class_names) == ((0.1,) * 3, None)


def test_a_mean_that_is_not_understood_is_no_missing_file(tmp_path):
    seen, told = looks_at(tmp_path, **(NUMBERS | {"image_mean": "imagenet"}))
    assert seen == cv.Preprocessing(class_names=tuple("vwxyz"))
    assert len(told) == 1
    assert (
        "preprocessor_config.json is not understood (image_mean is 'imagenet', expected"
        in (told[0])
    )
    assert "mean and std 0.5 are taken" in told[0]
    assert "no image processor" not in told[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bicubic", "bicubic"), ("BILINEAR", "bilinear"), ("PIL.Image.LANCZOS", "lanczos"),
     ("Resampling.NEAREST", "nearest"), ("3", "bicubic"), (1, "lanczos"), ("antialias", "lanczos")],
)  # fmt: skip
def test_a_filter_may_be_given_by_its_name(name, expected, tmp_path):
    seen, told = looks_at(tmp_path, **NUMBERS, resample=name)
    assert (seen.interpolation, told) == (expected, [])


@pytest.mark.parametrize("options", [{}, {"include_top": False}, {"do_normalize": False}])
def test_efficientnets_processor_divides_twice(options):
    from transformers import EfficientNetImageProcessor

    processor = EfficientNetImageProcessor(
        size={"height": 4, "width": 4}, do_center_crop=False, image_std=[0.2, 0.3, 0.4], **options
    )
    draw = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=torch.Generator())
    picture = Image.fromarray(draw.numpy())
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    values = json.loads(processor.to_json_string())
    seen = as_preprocessing(values)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (seen.mean, seen.std))
    assert ((draw.permute(2, 0, 1) / 255 - mean) / std - expected).abs().max() < 1e-4
    assert not_understood(values) == []
    assert not_understood({**NUMBERS, "include_top": True}) == []


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


def seen_by(tmp_path, name="preprocessor_config.json", **values):
    a_transformers("ViT").save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps(values))
    return examine(tmp_path)


CONVNEXT = {
    "ConvNextImageProcessor, below 384": ({"image_processor_type": "ConvNextImageProcessor",
                                           "size": {"shortest_edge": 224}, "crop_pct": 0.875},
                                          ("shortest", 0.875)),
    "its default": ({"image_processor_type": "ConvNextImageProcessorFast",
                     "size": {"shortest_edge": 288}}, ("shortest", 0.875)),
    "from 384 on": ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9,
                     "size": {"shortest_edge": 384}}, ("squash", 1.0)),
    "an older one": ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224,
                      "crop_pct": 0.95}, ("shortest", 0.95)),
    "of unknown type": ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, ("shortest", 0.9)),
    "PoolFormer": ({"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.9,
                    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224},
                    "do_center_crop": True}, ("shortest", 0.9)),
    "LeViT": ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224},
               "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
              ("shortest", 0.875)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVNEXT)
def test_a_share_that_is_cropped_is_read(name):  # case 10
    values, expected = CONVNEXT[name]
    seen = as_preprocessing(values)
    assert (seen.resize, pytest.approx(seen.crop)) == expected


@pytest.mark.parametrize(
    ("name", "size"),
    [("ConvNextImageProcessor", 64), ("PoolFormerImageProcessor", 64), ("LevitImageProcessor", 64),
     ("DeiTImageProcessor", 0), ("CLIPImageProcessor", 0), ("BitImageProcessor", 0),
     ("SiglipImageProcessor", 0), ("ViTImageProcessor", 0), ("ConvNextImageProcessor", 384)],
)  # fmt: skip
def test_pictures_come_out_as_those_of_the_processor(name, size, tmp_path):
    import transformers

    options = {"size": {"shortest_edge": size}} if size else {}
    if size and "ConvNext" not in name:
        options["crop_size"] = {"height": size, "width": size}
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    seen = as_preprocessing(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, 300), torch.linspace(0, 1, 420), indexing="ij"
    )
    picture = torch.stack([rows, columns, rows * columns], dim=-1)
    image = Image.fromarray((255 * picture).to(torch.uint8).numpy())
    expected = processor(image, return_tensors="pt")["pixel_values"]
    side = expected.shape[-1]
    before = seen.resized_side(side)
    shape = (before, before)
    if seen.resize == "shortest":
        scale = before / min(image.size)
        shape = tuple(max(before, int(length * scale)) for length in image.size)
    resized = image.resize(shape, getattr(Image.Resampling, seen.interpolation.upper()))
    left, top = ((length - side) // 2 for length in resized.size)
    pixels = torch.tensor(bytearray(resized.crop((left, top, left + side, top + side)).tobytes()))
    found = pixels.view(side, side, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (seen.mean, seen.std))
    assert ((found - mean) / std - expected[0]).abs().mean() < 0.02


def test_keys_that_are_not_understood_are_named_once(tmp_path):  # case 10
    found = seen_by(
        tmp_path, **PLAIN, image_processor_type="ViTImageProcessor", do_pad=True, do_thumbnail=False,
        do_convert_rgb=True, do_flip_channel_order=True, processor_class=None, data_format="x",
    )  # fmt: skip
    text = "are left out: do_pad=True, do_flip_channel_order=True"
    assert sum(text in note for note in found.folded) == 1
    assert sum(text in note for note in found.guessed) == 1
    with pytest.warns(UserWarning, match=f"{text}, so pictures may be seen otherwise"):
        cv.load_vit(tmp_path)
    assert "do_thumbnail" not in str(found.folded)
    found = seen_by(tmp_path, size={"height": 224, "width": 200}, crop_size={"longest_edge": 9})
    assert "'width': 200}, which is not a square" in str(found.guessed)
    found = seen_by(tmp_path, **PLAIN, image_processor_type="ViTImageProcessor", crop_pct=0.9)
    assert "crop_pct=0.9, which a ViTImageProcessor doesn't read" in str(found.guessed)
    assert found.vit.preprocessing.crop == 1


@pytest.mark.parametrize("name", ["ViT", "DeiT", "CLIP", "Bit", "Siglip", "ConvNext", "Beit"])
def test_what_processors_write_themselves_is_understood_whole(name, tmp_path):
    import transformers

    getattr(transformers, f"{name}ImageProcessor")().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert not_understood(values) == []


def test_the_nested_file_of_version_5_comes_first(tmp_path):
    inner = {**PLAIN, "image_processor_type": "ViTImageProcessor"}
    found = seen_by(tmp_path, "processor_config.json", image_processor=inner, processor_class="P")
    assert found.vit.preprocessing.mean == (0.4, 0.5, 0.6)
    found = seen_by(tmp_path, image_mean=[0.9] * 3)
    assert found.vit.preprocessing.mean == (0.4, 0.5, 0.6)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "P"}')
    assert examine(tmp_path).vit.preprocessing.mean == (0.9,) * 3


def test_fields_that_are_left_out_are_as_the_class_has_them():
    seen = as_preprocessing({"image_processor_type": "CLIPImageProcessor"})
    assert seen.interpolation == "bicubic"
    assert seen.mean[0] == 0.48145466
    assert as_preprocessing({"image_processor_type": "DeiTImageProcessor"}).crop == 0.875
