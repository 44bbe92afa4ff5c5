"""Files for deployment: bytes in and probabilities out, INT8, and both beside the model itself."""

import copy
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from random_models import random_images, random_vit, shape

import circuitvit as cv
from circuitvit.export import exporting
from circuitvit.images.tensor_checks import as_bytes

NAMES = ("cat", "dog", "owl", "emu")
SEEN = cv.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), class_names=NAMES)


def seeing(seed=2, dtype=torch.float32, channels=3, seen=SEEN, **changes):
    vit = random_vit(shape(channels=channels, **{"depth": 1, **changes}), seed=seed, dtype=dtype)
    vit.preprocessing = seen
    return vit


def pixels_of(count, channels=3, side=4):
    shown = np.random.default_rng(7).integers(0, 256, (count, side, side, channels))
    return shown.astype(np.uint8)


def normalised(pixels, seen=SEEN):
    mean, std = (np.array(x, dtype=np.float32) for x in (seen.mean, seen.std))
    images = (pixels.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def predicted(vit, pixels):
    """The probabilities that `predict` gives, in the logits' order."""
    rows = [dict(zip(p.classes, p.probabilities, strict=True)) for p in vit.predict(pixels)]
    return np.array([[row[c] for c in range(len(row))] for row in rows])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_with_its_preprocessing_gives_what_predict_gives(channels, tmp_path):
    seen = SEEN if channels == 3 else cv.Preprocessing(mean=0.3, std=0.2, class_names=NAMES)
    vit = seeing(channels=channels, seen=seen)
    path = cv.export(vit, tmp_path / "m.onnx", preprocess=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert given.shape[1:] == [4, 4, channels]
    assert (made.name, made.type) == ("probabilities", "tensor(float)")
    for count in (1, 5):
        pixels = pixels_of(count, channels)
        (found,) = session.run(None, {"images": pixels})
        assert np.abs(found - predicted(vit, pixels)).max() < 1e-5
    told = session.get_modelmeta().custom_metadata_map
    assert told["input"] == "uint8 [image height width channel]"
    assert told["output"] == "probabilities"
    assert json.loads(told["class_names"]) == list(NAMES)


def test_so_does_a_pt2_file_and_a_model_in_half_precision(tmp_path):
    vit = seeing()
    pixels = torch.from_numpy(pixels_of(4))
    path = cv.export(vit, tmp_path / "m.pt2", preprocess=True)
    found = torch.export.load(path).module()(pixels)
    assert np.abs(found.detach().numpy() - predicted(vit, pixels.numpy())).max() < 1e-5
    half = cv.export(vit, tmp_path / "h.onnx", preprocess=True, dtype=torch.float16)
    session = onnxruntime.InferenceSession(half, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": pixels.numpy()})
    assert found.dtype == np.float32
    assert np.abs(found - predicted(vit, pixels.numpy())).max() < 2e-2


def test_bytes_come_back_from_normalised_images():
    pixels = pixels_of(6)
    assert torch.equal(as_bytes(normalised(pixels), SEEN).movedim(1, -1), torch.from_numpy(pixels))


def test_an_onnx_model_stands_beside_the_model_in_an_evaluation(tmp_path):
    vit = seeing()
    pixels = pixels_of(40)
    images = normalised(pixels)
    labels = vit(images).argmax(dim=1)
    plain = cv.OnnxModel(cv.export(vit, tmp_path / "m.onnx"))
    whole = cv.OnnxModel(cv.export(vit, tmp_path / "p.onnx", preprocess=True))
    expected = vit(images).detach()
    assert torch.allclose(plain(images), expected, atol=1e-4)
    assert torch.allclose(whole(images), expected.log_softmax(dim=1), atol=1e-4)
    models = {"dense": vit, "onnx": plain, "from bytes": whole}
    found = cv.evaluate(models, images, labels, batches=(2,), rounds=3)
    for name in models:
        row = found.report[name]
        assert row.accuracy.top1 == 1
        assert row.parameters == found.report["dense"].parameters == plain.parameter_count
        assert row.macs == found.report["dense"].macs == plain.mac_count
        assert len(row.latency[2].rounds_ms) == 3
    assert found.class_names == NAMES
    for model in (plain, whole):
        assert np.abs(predicted(model, pixels) - predicted(vit, pixels)).max() < 1e-5
    assert "m.onnx" in repr(plain)
    assert torch.equal(copy.deepcopy(plain)(images), plain(images))
    assert not list(plain.parameters())


@pytest.mark.parametrize("preprocess", [False, True])
def test_int8_is_calibrated_smaller_and_about_as_right(preprocess, tmp_path):
    vit = seeing(image_size=16, patch_size=4, width=32, depth=2, mlp_width=64, head_width=16)
    images = normalised(pixels_of(96, side=16))
    dense = cv.export(vit, tmp_path / "m.onnx", preprocess=preprocess)
    path = cv.export(vit, tmp_path / "m.int8.onnx", preprocess=preprocess, quantize=images[:64])
    assert path.stat().st_size < dense.stat().st_size
    model = cv.OnnxModel(path)
    told = json.loads(model.metadata["quantized"])
    assert told["calibration_images"] == 64
    expected, found = vit(images).detach(), model(images)
    if preprocess:
        expected = expected.log_softmax(dim=1)
    agree = (found.argmax(1) == expected.argmax(1)).double()
    assert told["agreement"] == pytest.approx(agree[:64].mean().item(), abs=0.05)
    assert agree.mean() > 0.85
    assert 0 < (found - expected).abs().max() < 0.2 * expected.abs().max()
    assert model.metadata["fingerprint"] == vit.fingerprint()
    kinds = {node.op_type for node in _graph(path)}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not {"QuantizeLinear"} & {node.op_type for node in _graph(dense)}
    assert model(images[:0]).shape == (0, 4)
    assert cv.OnnxModel(dense)(images[:0]).shape == (0, 4)
    with pytest.raises(cv.CircuitError, match="onnxruntime can't run .*m.int8.onnx on 2 images"):
        model.run(torch.zeros(2, 7, 7, dtype=torch.float64))


def _graph(path):
    import onnx

    return onnx.load(path).graph.node


def test_the_model_and_the_calibration_images_stay_as_they_are(tmp_path, capfd):
    vit = seeing().train()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    images = normalised(pixels_of(40))
    same, generator = images.clone(), torch.get_rng_state()
    cv.export(vit, tmp_path / "m.onnx", preprocess=True, quantize=images)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert torch.equal(images, same)
    assert torch.equal(torch.get_rng_state(), generator)
    assert vit.training
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())


def test_a_bad_quantisation_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "AGREEMENT", 1.01)
    images = normalised(pixels_of(20))
    with pytest.warns(UserWarning, match="best class is the model's on .*% of the calibration"):
        cv.export(seeing(), tmp_path / "m.onnx", quantize=images)


def test_bad_input_is_refused_with_the_remedy(tmp_path, as_users_call):
    vit, images = seeing(), normalised(pixels_of(4))
    unknown = seeing(seen=None)
    for model, name, options, message in (
        (unknown, "m.onnx", {"preprocess": True}, "needs to know how images are normalised"),
        (vit, "m", {"preprocess": True, "to": "timm"}, "preprocess=True is for ONNX and pt2"),
        (vit, "m.pt2", {"quantize": images}, "quantize= is for ONNX files"),
        (vit, "m.onnx", {"quantize": images, "dtype": torch.float16}, "starts from single"),
        (vit, "m.onnx", {"quantize": images[:, :1]}, r"quantize holds images of \(1, 4, 4\)"),
        (vit, "m.onnx", {"quantize": images[:0]}, "quantize holds no image"),
        (vit, "m.onnx", {"quantize": 3}, "quantize is a int, expected a tensor"),
        (vit, "m.onnx", {"quantize": images / 0}, "quantize has .* NaN or infinite"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.export(model, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_of_ours_are_refused(tmp_path, as_users_call, monkeypatch):
    import onnx

    vit = seeing()
    path = cv.export(vit, tmp_path / "m.onnx")
    with pytest.raises(cv.CircuitError, match="no ONNX model at .*there is no such file"):
        cv.OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(cv.CircuitError, match="onnxruntime can't run"):
        cv.OnnxModel(tmp_path / "text.onnx")
    model = cv.OnnxModel(path)
    with pytest.raises(cv.CircuitError, match=r"shape \(1, 3, 5, 5\), this ONNX model expects"):
        model(torch.zeros(1, 3, 5, 5))
    for name, value in (
        ("macs", "-1"), ("input_size", "[3, 5, 5]"), ("parameters", '"x"'), ("macs", "[" * 200_000),
        ("input_size", "7"), ("input_size", "[3.0, 4, 4]"), ("input_size", "{"),
        ("preprocessing", '{"mean": [0.1, 0.2], "std": [0.5]}'), ("preprocessing", "3"),
    ):  # fmt: skip
        altered = onnx.load(path)
        (item,) = [item for item in altered.metadata_props if item.key == name]
        item.value = value
        onnx.save(altered, tmp_path / "altered.onnx")
        with pytest.raises(cv.CircuitError, match="no ONNX file that this version of cv.export"):
            cv.OnnxModel(tmp_path / "altered.onnx")
    altered = onnx.load(path)
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    altered.graph.input[0].type.CopyFrom(kind)
    onnx.save(altered, tmp_path / "altered.onnx")
    with pytest.raises(cv.CircuitError, match=r"takes 'images' of \[1, 3, 4, 4\]"):
        cv.OnnxModel(tmp_path / "altered.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(cv.CircuitError, match="pip install onnxruntime"):
        cv.OnnxModel(path)


def test_random_images_of_a_compiled_model_agree(tmp_path):
    vit = seeing()
    small = cv.prune_heads(vit, {0: [0]})
    model = cv.OnnxModel(cv.export(small, tmp_path / "m.onnx"))
    images = random_images(small, 5)
    assert torch.allclose(model(images), small(images), atol=1e-4)
