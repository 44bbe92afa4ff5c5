"""Folders whose files don't agree: nothing is left random, and every key is named."""

import json

import pytest
import torch
from foreign_models import CLASSES, PATCH, a_timm, a_transformers, drawn, images
from random_models import random_vit, shape
from safetensors.torch import load_file, save_file

import circuitvit as cv
from circuitvit.pretrained import examine

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

SHAPE = dict(img_size=16, patch_size=PATCH, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture
def timms(tmp_path):
    """A folder as timm writes it."""
    module = drawn(timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **SHAPE)).float()
    timm.models.save_for_hf(
        module, tmp_path, safe_serialization=True, model_args=SHAPE,
        model_config={"num_classes": CLASSES, "label_names": list("abcde")},
    )  # fmt: skip
    return tmp_path, module


def rewritten(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def configured(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        merged = config.get(name, {}) | value if isinstance(value, dict) else value
        config[name] = known(merged) if isinstance(merged, dict) else merged
    path.write_text(json.dumps(known(config)))


def known(values):
    return {name: value for name, value in values.items() if value is not None}


CONFIGS = ("model_args", "pretrained_cfg")
HEAD = r"head.bias has shape \(5,\), expected \({0},\); head.weight has shape .* expected \({0}, 24"


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        (dict(num_classes=7, label_names=list("abcdefg"), model_args={"num_classes": None}), 7),
        (dict(model_args={"num_classes": 7}), 7),
        (dict(num_classes=None, **{k: {"num_classes": None} for k in CONFIGS}), 1000),
    ],
)
def test_a_folder_of_timm_with_another_head_size_is_refused(timms, changes, classes):
    folder, _ = timms
    configured(folder, **changes)
    with pytest.raises(cv.CircuitError, match=HEAD.format(classes)):
        cv.load_vit(folder)


def test_missing_and_surplus_keys_in_a_folder_of_timm_are_all_named(timms):
    folder, _ = timms

    def change(state):
        del state["blocks.1.mlp.fc2.bias"], state["head.weight"]
        state["extra"] = torch.ones(1)

    rewritten(folder, change)
    with pytest.raises(
        cv.CircuitError, match="fc2.bias is missing; head.weight is missing; extra is surplus"
    ):
        cv.load_vit(folder)


@torch.no_grad()
def test_positions_in_a_folder_of_timm_decide_its_image_size(timms):
    folder, module = timms
    configured(folder, model_args={"img_size": 32})
    found = examine(folder)
    x = images().float()
    assert (found.vit(x) - module(x)).abs().max() < 1e-5 * module(x).abs().max()
    assert "images are 16 pixels, as the weights' positions are, not 32" in found.folded


def test_a_config_of_timm_that_makes_no_model_says_why(timms):
    folder, _ = timms
    configured(folder, model_args={"no_such_option": 3})
    with pytest.raises(cv.CircuitError, match="timm can't make 'vit_tiny.*'no_such_option'"):
        cv.load_vit(folder)
    configured(folder, architecture="eva02_tiny_patch14_224", model_args=None)
    with pytest.raises(cv.CircuitError, match="rotary positions"):
        cv.load_vit(folder)


def test_a_folder_of_transformers_with_another_head_size_is_refused(tmp_path):
    a_transformers("ViT").save_pretrained(tmp_path)

    def change(state):
        state["classifier.weight"] = torch.ones(7, 24).double()
        state["classifier.bias"] = torch.ones(7).double()

    rewritten(tmp_path, change)
    reasons = (
        r"classifier.bias has shape \(7,\), expected \(5,\); classifier.weight has shape "
        r"\(7, 24\), expected \(5, 24\)"
    )
    with pytest.raises(cv.CircuitError, match=reasons):
        cv.load_vit(tmp_path)


def test_a_checkpoint_keeps_no_class_names_of_its_architecture(tmp_path, timms):
    folder, module = timms
    theirs, ours = a_transformers("ViT"), random_vit(shape(classes=5))
    theirs.config.id2label = dict(enumerate("vwxyz"))
    theirs.save_pretrained(tmp_path / "hf")
    ours.preprocessing = cv.Preprocessing(0.2, 0.3, class_names=tuple("abcde"))
    ours.save_pretrained(tmp_path / "ours")
    weights = tmp_path / "weights.pt"
    for source, model in (
        (folder, module), (cv.load_vit(folder), cv.load_vit(folder)), (tmp_path / "ours", ours),
        (ours, ours), (tmp_path / "hf", theirs),
    ):  # fmt: skip
        torch.save(model.state_dict(), weights)
        found = examine(source, checkpoint=weights)
        assert getattr(found.vit.preprocessing, "class_names", None) is None
        assert any("class names are forgotten" in note for note in found.folded)
        names = examine(source).vit.preprocessing.class_names
        assert len(names) == CLASSES
        given = cv.Preprocessing(class_names=names)
        assert cv.load_vit(source, checkpoint=weights, preprocessing=given).preprocessing == given
    module.pretrained_cfg["label_names"] = tuple("abcde")
    torch.save(module.state_dict(), weights)
    assert cv.load_vit(module).preprocessing.class_names == tuple("abcde")
    assert cv.load_vit(module, checkpoint=weights).preprocessing.class_names is None


def test_a_folder_of_transformers_wrapper_for_timm_gives_timms_model(tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="test_vit", num_labels=CLASSES)
    module = TimmWrapperForImageClassification(config)
    module.save_pretrained(tmp_path)
    assert cv.load_vit(tmp_path).fingerprint() == cv.load_vit(module).fingerprint()


@torch.no_grad()
def test_a_checkpoint_beside_a_folder_of_timm_brings_its_own_number_of_classes(tmp_path, timms):
    folder, _ = timms
    other = timm.create_model("vit_tiny_patch16_224", num_classes=9, **SHAPE).eval()
    torch.save(other.state_dict(), tmp_path / "nine.pt")
    vit, x = cv.load_vit(folder, checkpoint=tmp_path / "nine.pt"), images().float()
    assert (vit(x) - other(x)).abs().max() < 1e-6


def test_no_folder_and_a_folder_without_a_config_say_what_is_needed(tmp_path, as_users_call):
    with pytest.raises(cv.CircuitError, match=r"empty string. Give a folder \('.' is the current"):
        cv.load_vit("")
    torch.save(a_timm().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(cv.CircuitError, match="holds mine.pt: give the file itself"):
        cv.load_vit(tmp_path)


def test_arguments_of_another_kind_are_named_together(as_users_call):
    with pytest.raises(
        cv.CircuitError,
        match="checkpoint is 3, expected the path .*preprocessing is a dict, expected a cv.Prepro",
    ):
        cv.load_vit(random_vit(shape()), checkpoint=3, preprocessing={"mean": 0.5})


def test_a_trainers_folder_names_its_checkpoints(tmp_path):  # case 22
    for step in (1000, 500, 90):
        a_transformers("ViT").save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(
        cv.CircuitError,
        match="folders of models in it: give one, such as .*checkpoint-90, .*-500, .*-1000",
    ):
        cv.load_vit(tmp_path)


def test_an_adapter_of_peft_is_no_model(tmp_path):  # case 15
    told = {"peft_type": "LORA", "base_model_name_or_path": "google/vit-base-patch16-224"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.vit.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, path)
    message = r"adapter of peft \(LORA\).*\(google/vit-base.*merge_and_unload\(\)"
    with pytest.raises(cv.CircuitError, match=message):
        cv.load_vit(tmp_path)
    with pytest.raises(cv.CircuitError, match=r"LoRA .*merge_and_unload\(\)"):
        cv.load_vit(path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(cv.CircuitError, match=message):
        cv.load_vit(tmp_path)


def test_a_quantised_folder_of_transformers_is_refused(tmp_path):
    a_transformers("ViT").save_pretrained(tmp_path)
    configured(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(cv.CircuitError, match=r"holds a quantised model.*model.dequantize\(\)"):
        cv.load_vit(tmp_path)


def test_a_cache_that_can_not_be_written_is_named(monkeypatch):  # case 22
    import datasets
    import huggingface_hub

    from circuitvit.images.sources import source_kinds as sources

    def refused(*_, **__):
        raise RuntimeError("download failed") from PermissionError(
            13, "Permission denied", "/cache/x"
        )

    message = "cache can't be written: Permission denied at /cache/x.*set HF_HOME"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(cv.CircuitError, match=message):
        cv.load_vit("hf:google/vit-base-patch16-224")
    monkeypatch.setattr(datasets, "load_dataset", refused)
    monkeypatch.setattr(sources, "_hub_answers", lambda: True)
    with pytest.raises(cv.CircuitError, match=message):
        cv.load_splits("uoft-cs/cifar10")
