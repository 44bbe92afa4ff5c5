"""What a model's folder claims is checked before any of it is believed, run or made."""

import io
import json

import pytest
import torch
from foreign_models import a_transformers
from safetensors.torch import load_file, save_file

import circuitvit as cv

PAYLOAD = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\n"
AUTO = {
    "AutoConfig": "payload.Config", "AutoModelForImageClassification": "payload.Model",
    "AutoImageProcessor": "payload.Processor", "AutoModel": "payload.Model",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers, with its weights."""
    a_transformers("ViT").float().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def planted(folder, tmp_path, monkeypatch):
    """The folder with code that would leave a mark, and someone who says yes to everything."""
    mark = tmp_path / "mark"
    names = ("payload", "sitecustomize", "usercustomize", "configuration_vit", "modeling_vit",
             "conftest", "__init__", "transformers", "pipeline")  # fmt: skip
    for name in names:
        (folder / f"{name}.py").write_text(PAYLOAD.format(mark=str(mark)))
    processor = {"image_processor_type": "Processor", "auto_map": AUTO, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    yield changed(folder, auto_map=AUTO, custom_pipelines={"image": {"impl": "pipeline.Run"}})
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["vit", "unheard-of"])
def test_code_of_a_folder_is_never_run(planted, kind):
    changed(planted, model_type=kind)
    if kind == "vit":  # transformers has a class of its own for it
        assert cv.load_vit(planted).config.depth
        return
    with pytest.raises(cv.CircuitError, match="runs no code from a model's folder"):
        cv.load_vit(planted)


def test_a_pickle_among_the_weights_is_never_run(planted, tmp_path):
    class Running:
        def __reduce__(self):
            return exec, (PAYLOAD.format(mark=str(tmp_path / "mark")),)

    state = load_file(planted / "model.safetensors")
    (planted / "model.safetensors").unlink()
    torch.save({**state, "more": Running()}, planted / "pytorch_model.bin")
    with pytest.raises(cv.CircuitError, match="can't load"):
        cv.load_vit(planted)


def test_a_kernel_from_the_hub_is_never_fetched(folder):
    for name in ("attn_implementation", "_attn_implementation"):
        with pytest.raises(cv.CircuitError, match="a kernel from the hub"):
            cv.load_vit(changed(folder, **{name: "someone/kernel"}))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/hosts", "..", "a/b", "x\0y", "out"])
def test_weights_outside_of_the_folder_are_not_read(folder, name, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "out").symlink_to(tmp_path / "model.safetensors")
    keys = load_file(tmp_path / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(cv.CircuitError, match="no file inside of"):
        cv.load_vit(folder)


@pytest.mark.parametrize("shards", [[], None, {"a": 1}, {str(n): str(n) for n in range(20_000)}])
def test_an_index_of_another_kind_is_refused(folder, shards):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(cv.CircuitError, match="index of weights|names 20,000 files"):
        cv.load_vit(folder)


def test_honest_shards_are_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + place % 2}-of-00002.safetensors"
             for place, key in enumerate(weights)}  # fmt: skip
    for shard in set(names.values()):
        own = {key: value for key, value in weights.items() if names[key] == shard}
        save_file(own, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    )
    assert cv.load_vit(folder).config.depth


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6}, {"num_hidden_layers": 10**30}, {"hidden_size": 2**63},
        {"hidden_size": 2**30, "intermediate_size": 2**30}, {"patch_size": 0}, {"image_size": "x"},
        {"image_size": 2**30, "patch_size": 1}, {"num_labels": 10**9, "id2label": None},
        {"architectures": 5}, {"model_type": ["vit"]}, {"hidden_size": {"a": 1}},
        {"num_attention_heads": 0}, {"id2label": [1]}, {"layer_norm_eps": [[1]]},
    ],
)  # fmt: skip
def test_absurd_configs_of_transformers_are_refused_before_anything_is_made(folder, changes):
    with pytest.raises(cv.CircuitError):
        cv.load_vit(changed(folder, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:someone/model"}, {"architecture": ["vit_tiny_patch16_224"]},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 10**6}},
        {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 2**63}},
        {"architecture": "vit_tiny_patch16_224", "model_args": [1]},
        {"architecture": "vit_tiny_patch16_224", "num_classes": 10**9},
    ],
)  # fmt: skip
def test_absurd_configs_of_timm_are_refused_before_anything_is_made(folder, changes):
    pytest.importorskip("timm", reason="it comes with circuitvit[timm]")
    (folder / "config.json").write_text(json.dumps(changes))
    with pytest.raises(cv.CircuitError):
        cv.load_vit(folder)
