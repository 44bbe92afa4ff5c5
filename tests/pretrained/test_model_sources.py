"""Models by name, in local folders of three libraries, and what each says of its images."""

import json

import pytest
import torch
from foreign_models import CLASSES, a_timm, a_transformers, drawn, images
from random_models import random_vit, shape

import circuitvit as cv
from circuitvit.pretrained import examine

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:vit_tiny_patch16_244",
            "knows no model 'vit_tiny_patch16_244'.*vit_tiny_patch16_224",
        ),
        ("timm:vit_tiny_patch16_224.nothing", "no pretrained weights.*augreg_in21k_ft_in1k"),
        ("timm:vit_tiny_patch16_18x2_224", "knows no model"),
        ("timm:", "'timm:' names no model"),
        ("torchvision:vit_b_61", "knows no model 'vit_b_61'.*closest are vit_b_16.*Its ViTs are"),
        ("torchvision:vit_b_16.X", "no weights 'X' of vit_b_16, but IMAGENET1K_V1"),
        ("timm:resnet18", "timm.models.resnet.ResNet. What can be read"),
        ("timm:eva02_tiny_patch14_224", "rotary positions"),
        ("torchvision:swin_t", "windowed"),
        ("hf:not a name", "can't be had from the Hugging Face hub"),
        ("nowhere", "no such folder or file. Names start with the library"),
        ("google/vit-base-patch16-224", "say 'hf:google/vit-base-patch16-224'"),
    ],
)
def test_unknown_names_say_what_there_is(name, message):
    with pytest.raises(cv.CircuitError, match=message):
        cv.load_vit(name)


@pytest.mark.parametrize(
    "name", ["timm:vit_tiny_patch16_224", "hf:google/vit-base-patch16-224", "torchvision:vit_b_16"]
)
def test_without_a_network_there_is_one_message(name, monkeypatch, tmp_path):
    """An address that no one answers stands for the lack of one."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://localhost:9")
    with pytest.raises(cv.CircuitError, match=r"can't be (had|fetched).*Check the (name and the )?network"):  # fmt: skip
        cv.load_vit(name)


def cached_on_the_hub(root, repository, write):
    """A repository as huggingface_hub keeps it, so that it needs no network."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    write(folder / "snapshots" / ("0" * 40))


def names_of_imagenet():
    """As torchvision calls them, but for the two pairs that WordNet calls alike."""
    from torchvision.models import ViT_B_16_Weights

    names = list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
    for word in ("crane", "maillot"):
        for index in [i for i, name in enumerate(names) if name.startswith(word)]:
            names[index] = f"{word} ({index})"
    return tuple(names)


@torch.no_grad()
def test_names_are_taken_from_the_hubs_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    module = drawn(timm.create_model("test_vit")).float()
    config = timm.models.get_pretrained_cfg("test_vit")
    name = f"test_vit.{config.tag}"
    ours, theirs = random_vit(shape("ragged")), a_transformers("ViT")

    def save_as_before(folder):
        theirs.config.architectures = [type(theirs).__name__]
        theirs.config.save_pretrained(folder)
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")

    for repository, write in (
        (f"timm/{name}", lambda to: timm.models.save_for_hf(module, to, safe_serialization=True)),
        ("me/ours", ours.save_pretrained),
        ("me/theirs", theirs.save_pretrained),
        ("me/older", save_as_before),
    ):
        cached_on_the_hub(tmp_path, repository, write)
    side = module.patch_embed.img_size[0]
    x = images(side=side).float()
    for source in ("timm:test_vit", f"timm:{name}", f"hf:timm/{name}"):
        found = examine(source)
        assert (found.vit(x) - module(x)).abs().max() < 1e-5 * module(x).abs().max()
        assert found.source == source
        assert found.vit.preprocessing.mean == tuple(config.mean)
        assert found.vit.preprocessing.class_names == names_of_imagenet()
    torch.save(module.state_dict(), tmp_path / "mine.pt")
    for source in ("timm:test_vit", f"hf:timm/{name}"):
        mine = cv.load_vit(source, checkpoint=tmp_path / "mine.pt")
        assert mine.preprocessing.class_names is None
    assert cv.load_vit("hf:me/ours").fingerprint() == ours.fingerprint()
    for name in ("hf:me/theirs", "hf:me/older"):
        assert cv.load_vit(name).fingerprint() == cv.load_vit(theirs).fingerprint()


@torch.no_grad()
def test_a_folder_of_timm_gives_the_model_and_its_preprocessing(tmp_path):
    module = drawn(timm.create_model("test_vit", num_classes=CLASSES, img_size=64)).float()
    module.pretrained_cfg |= dict(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", crop_pct=0.8,
        label_names=("a", "b", "c", "c", "d"), input_size=(3, 64, 64), num_classes=CLASSES,
    )  # fmt: skip
    timm.models.save_for_hf(module, tmp_path, safe_serialization=True)
    found = examine(tmp_path)
    x = images(side=64).float()
    assert (found.vit(x) - module(x)).abs().max() < 1e-5 * module(x).abs().max()
    assert found.vit.preprocessing == cv.Preprocessing(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bilinear", crop=0.8,
        class_names=("a", "b", "c (2)", "c (3)", "d"),
    )  # fmt: skip
    other = a_timm().float()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    with pytest.raises(cv.CircuitError, match="other.pt don't fit this VisionTransformer"):
        cv.load_vit(tmp_path, checkpoint=tmp_path / "other.pt")
    torch.save(other.state_dict(), tmp_path / "another.pt")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        cv.CircuitError,
        match="timm can't load the model in .*no model.safetensors, but another.pt, other.pt",
    ):
        cv.load_vit(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("ViT", {}), ("DeiT", {"teacher": True}), ("Dinov2", {}), ("Dinov2WithRegisters", {}),
     ("Siglip", {})],
)  # fmt: skip
@torch.no_grad()
def test_a_folder_of_transformers_gives_the_model(kind, options, tmp_path):
    module = a_transformers(kind, **options)
    module.config.id2label = dict(enumerate("vwxyz"))
    module.save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 20}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "image_mean": [0.1] * 3,
        "image_std": [0.2] * 3,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = examine(str(tmp_path))
    x = images()
    assert (found.vit(x) - module(x).logits).abs().max() < 1e-10 * module(x).logits.abs().max()
    assert found.vit.positions.dtype == torch.float64
    expected = cv.Preprocessing(
        mean=(0.1,) * 3, std=(0.2,) * 3, crop=0.8, class_names=tuple("vwxyz")
    )
    assert found.vit.preprocessing == expected
    loaded = type(module).from_pretrained(tmp_path, dtype=torch.float64)
    assert cv.load_vit(loaded).preprocessing == expected  # the module remembers its folder
    torch.save(module.state_dict(), tmp_path / "again.pt")
    again = cv.load_vit(tmp_path, checkpoint=tmp_path / "again.pt")
    assert again.fingerprint() == found.vit.fingerprint()


def test_a_folder_whose_weights_do_not_fit_is_refused_with_every_key(tmp_path):
    from safetensors.torch import load_file, save_file

    a_transformers("ViT").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "0" in name and name.endswith("query.bias"))
    del state[name], state["classifier.bias"]
    save_file(state | {"extra": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(
        cv.CircuitError, match="classifier.bias is missing; .*bias is missing; extra is"
    ):
        cv.load_vit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"architectures": ["ViTModel"]}, "holds a ViTModel, which has no classifier"),
        ({"model_type": "no_such", "architectures": None}, "can't read .* of type 'no_such'"),
        ({"model_type": "t5", "architectures": None}, "no image classifier of type 't5'"),
        ({"hidden_size": "big"}, "can't read .*'hidden_size' expected int, got str"),
        ({"hidden_act": "nope"}, "no model can be made of .*KeyError: 'nope'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(cv.CircuitError, match=message):
            cv.load_vit(tmp_path)


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(cv.CircuitError, match="there is no config.json. A model's folder holds"):
        cv.load_vit(tmp_path)
    (tmp_path / "config.json").write_text('{"hello": 1}')
    with pytest.raises(cv.CircuitError, match="not the config of a ViT of circuitvit"):
        cv.load_vit(tmp_path)
    vit = random_vit(shape("ragged"))
    vit.save_pretrained(tmp_path)
    assert cv.load_vit(tmp_path).fingerprint() == vit.fingerprint()


PROCESSORS = {
    "a bare number is both sides": (
        {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
        cv.Preprocessing((0.5,) * 3, (0.5,) * 3, interpolation="bilinear", resize="squash"),
    ),
    "of CLIP, the shortest": (
        {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3,
         "feature_extractor_type": "CLIPFeatureExtractor"},
        cv.Preprocessing(
            mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
        ),
    ),
    "DeiT": (
        {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224},
         "do_center_crop": True, "resample": 3},
        cv.Preprocessing(resize="squash", crop=224 / 256),
    ),
    "no normalisation": (
        {"size": {"height": 8, "width": 8}, "do_normalize": False, "resample": 1},
        cv.Preprocessing(0.0, 1.0, interpolation="lanczos", resize="squash"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_are_understood(name):
    from circuitvit.pretrained.libraries.processors import as_preprocessing

    values, expected = PROCESSORS[name]
    assert as_preprocessing(values) == expected


def test_modules_tell_their_preprocessing_as_far_as_they_know_it():
    vit = cv.load_vit(timm.create_model("test_vit"))
    assert vit.preprocessing is not None
    assert vit.preprocessing.class_names is None
    assert vit.preprocessing.crop == timm.create_model("test_vit").pretrained_cfg["crop_pct"]
    grey = examine(timm.create_model("test_vit", in_chans=1, num_classes=3))
    assert grey.vit.preprocessing is None
    assert any("left out: mean and std have 3 and 3 values for 1" in n for n in grey.folded)
    module = a_transformers("ViT")
    assert cv.load_vit(module).preprocessing is None
    module.config.id2label = dict(enumerate(["cat", "dog", "crane", "crane", "x"]))
    names = ("cat", "dog", "crane (2)", "crane (3)", "x")
    with pytest.warns(UserWarning, match="no image processor is beside it; mean and std 0.5"):
        assert cv.load_vit(module).preprocessing == cv.Preprocessing(class_names=names)
    given = cv.Preprocessing(0.4, 0.2, class_names=names)
    assert cv.load_vit(module, preprocessing=given).preprocessing == given


def test_torchvisions_weights_tell_their_transforms_and_categories():
    from torchvision.models import ViT_B_16_Weights

    from circuitvit.pretrained.names import preprocessing_of_weights

    seen = preprocessing_of_weights(ViT_B_16_Weights.IMAGENET1K_V1)
    assert (seen.interpolation, seen.resize, seen.crop) == ("bilinear", "shortest", 224 / 256)
    assert (seen.mean[0], seen.std[2]) == (0.485, 0.225)
    assert seen.class_names[:2] == ("tench", "goldfish")
    assert len(set(seen.class_names)) == 1000
    assert preprocessing_of_weights(ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1).crop == 1
