"""Exported files against the model itself; torch.compile and bf16 for dense and compiled models."""

import copy
import json
import shutil
import sys

import onnx
import onnxruntime
import pytest
import torch
from random_models import SHAPES, random_images, random_vit, shape
from small_circuits import circuit_of_units
from torch import nn

import circuitvit as cv
from circuitvit.measure import macs, parameters

SINGLE = torch.float32
TORCHS_OWN = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
"""Importing inductor warns, in torch 2.13."""


def dense(name="uniform", **changes):
    return random_vit(shape(name, **changes), seed=2, dtype=SINGLE)


def compiled(name="uniform", ablation="mean"):
    """A unit-compiled model without some heads and MLPs and without one whole attention."""
    vit = dense(name, depth=3) if name == "uniform" else dense(name)
    circuit, _ = circuit_of_units(vit, 5)
    small = cv.compile(vit, circuit, ablation=ablation, reference=random_images(vit, 9, seed=3))
    assert small.config.heads.count(0) > vit.config.heads.count(0)
    return small


def edges_compiled(ablation="mean"):
    """An edge circuit with tables, a constant pattern, a broadcast row and a shared sum."""
    vit = dense("uniform", depth=3)
    generator = torch.Generator().manual_seed(6)
    names = cv.edge_graph(vit.config).edges
    kept = {f"{w}->{r}" for w, r in names if torch.rand((), generator=generator) < 0.35}
    kept -= {"embed->a0.h0.q", "embed->a0.h0.k"}
    kept |= {"embed->a0.h0.v", "a0.h0->logits"}
    images = random_images(vit, 9, seed=3)
    small = cv.compile(
        vit, cv.Circuit(vit.config, kept), level="edge", ablation=ablation, reference=images
    )
    assert any(call.pattern for block in small.plan.blocks for call in block.calls)
    assert small.plan.tables
    return small


def by_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def by_torch_export(path, images):
    return torch.export.load(path).module()(images)


def assert_equal(model, run, share=1e-4):
    """Batches of one, of as many as were traced, and of more."""
    for count in (1, 3, 5):
        images = random_images(model, count, seed=count)
        expected = model(images).detach()
        error = (run(images) - expected).abs().max()
        assert error <= share * max(1, float(expected.abs().max())), count


@pytest.mark.parametrize("name", SHAPES)
def test_onnxruntime_computes_a_dense_models_logits_at_any_batch_size(name, tmp_path):
    vit = dense(name)
    path = cv.export(vit, tmp_path / "deep" / "model.onnx")
    assert path == tmp_path / "deep" / "model.onnx"
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]
    assert_equal(vit, lambda images: by_onnxruntime(path, images))


@pytest.mark.parametrize(
    "make", [compiled, lambda: compiled("ragged", "zero"), edges_compiled],
    ids=["unit, mean", "unit, zero", "edge"],
)  # fmt: skip
def test_a_compiled_model_is_exported_in_both_formats(make, tmp_path, as_users_call):
    small = make()
    onnx = cv.export(small, tmp_path / "file", to="onnx")
    assert_equal(small, lambda images: by_onnxruntime(onnx, images))
    pt2 = cv.export(small, tmp_path / "model.pt2")
    assert_equal(small, lambda images: by_torch_export(pt2, images))


def test_a_pt2_file_is_the_model_in_the_dtype_that_was_asked_for(tmp_path):
    vit = random_vit(shape("registers, q/k norm, no qkv bias, tanh"))
    path = cv.export(vit, tmp_path / "model.pt2")
    assert_equal(vit, lambda images: by_torch_export(path, images))
    path = cv.export(vit, tmp_path / "model.pt2", dtype=torch.bfloat16)
    images = random_images(vit, 4)
    found = by_torch_export(path, images.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - vit(images)).abs().max() < 0.05 * vit(images).abs().max()


def test_a_double_model_goes_to_onnx_in_single_precision_when_told(tmp_path, as_users_call):
    vit = random_vit(shape())
    with pytest.raises(cv.CircuitError, match=r"no ViT in torch.float64, give dtype=torch.float32"):
        cv.export(vit, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    path = cv.export(vit, tmp_path / "model.onnx", dtype=SINGLE)
    assert_equal(vit, lambda images: by_onnxruntime(path, images.float()))


@TORCHS_OWN
def test_exporting_says_nothing_and_leaves_the_model_as_it_was(tmp_path, capfd):
    vit = dense().train()
    vit.blocks[0].eval()
    modes = [module.training for module in vit.modules()]
    before, generator = copy.deepcopy(vit.state_dict()), torch.get_rng_state()
    cv.export(torch.compile(vit), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert [module.training for module in vit.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in vit.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


class Other(nn.Module):
    """A module of another kind with images of the shape that its config says."""

    def __init__(self):
        super().__init__()
        self.config = shape()
        self.head = nn.Linear(16, 4)
        self.times = []

    def forward(self, images):
        return self.head(images.flatten(1))


class Moody(Other):
    """Answers differently every time, so that no file can be right."""

    def forward(self, images):
        self.times.append(1)
        return super().forward(images) + len(self.times)


class Choosy(Other):
    """Looks at a value, which can't be traced."""

    def forward(self, images):
        return super().forward(images) * (2 if images.sum() > 0 else 3)


def test_any_module_with_a_config_is_exported(tmp_path):
    model = Other()
    path = cv.export(model, tmp_path / "model.onnx")
    images = random_images(dense(), 5)
    assert torch.allclose(by_onnxruntime(path, images), model(images), atol=1e-6)


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_that_computes_something_else_is_not_kept(ending, tmp_path):
    path = tmp_path / f"model.{ending}"
    path.write_text("what was there before")
    with pytest.raises(cv.CircuitError, match=r"differ from the model's by \d+, allowed are"):
        cv.export(Moody(), path)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_can_not_be_traced_or_trusted_is_refused(tmp_path):
    with pytest.raises(cv.CircuitError, match="torch.export can't trace this Choosy"):
        cv.export(Choosy(), tmp_path / "model.pt2")
    vit = dense()
    with torch.no_grad():
        vit.head.bias[0] = torch.nan
    with pytest.raises(cv.CircuitError, match="logits hold NaN or infinity"):
        cv.export(vit, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused_with_the_remedy(tmp_path, as_users_call):
    vit, file, folder = dense(), tmp_path / "file", tmp_path / "folder.pt2"
    file.write_text("")
    folder.mkdir()
    for arguments, options, message in (
        ((vit, "model.tflite"), {}, r"ends in '.tflite', expected '.onnx' or '.pt2'"),
        ((vit, "model"), {}, r"ends in '', expected"),
        ((vit, "model"), {"to": "tflite"}, "to is 'tflite', expected 'onnx' or 'pt2'"),
        ((vit, "model.pt2"), {"to": "onnx"}, "but to is 'onnx'; give one of the two"),
        ((vit, folder), {}, "is a folder, name a file"),
        ((vit, file / "model.pt2"), {}, r"cannot write .*Name a folder that can be written to"),
        ((nn.Linear(2, 2), "m.pt2"), {}, r"a Linear, expected a circuitvit.ViT"),
        (("model", "m.pt2"), {}, "a str, expected a circuitvit.ViT"),
        ((vit, "m.pt2"), {"dtype": torch.int8}, r"dtype is torch.int8, expected one of"),
        ((vit, "m.onnx"), {"dtype": torch.bfloat16}, r"no ViT in torch.bfloat16, give dtype"),
        ((vit, "m.onnx"), {"opset": "18"}, "opset is '18', expected a whole number"),
        ((vit, "m.onnx"), {"opset": True}, "opset is True, expected a whole number"),
        ((vit, "m.onnx"), {"opset": 0}, "opset is 0, expected a whole number"),
        (
            (vit, "m.pt2"),
            {"opset": 18},
            "opset=18 applies to ONNX files only; leave it out, or give to='onnx'",
        ),
        (
            (vit, "m"),
            {"opset": 18, "to": "timm"},
            "opset=18 applies to ONNX files only; leave it out",
        ),
        ((None, "m.tflite"), {}, r"expected '.onnx' or '.pt2'.*; the model is a NoneType"),
    ):
        with pytest.raises(cv.CircuitError, match=message):
            cv.export(*arguments, **options)
    assert sorted(tmp_path.iterdir()) == [file, folder]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_its_name_is_told(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        cv.CircuitError, match=rf"needs {package}, .*pip install onnx onnxruntime onnxscript"
    ):
        cv.export(dense(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [dense, compiled, edges_compiled])
def test_in_bf16_logits_are_within_3_percent_and_the_best_class_is_mostly_the_same(make):
    model = make()
    images = random_images(model, 200)
    half = copy.deepcopy(model).to(torch.bfloat16)
    expected, found = model(images), half(images.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch 2.13's inductor writes C++ that does not compile for ATEN_CPU_CAPABILITY=default",
)
@TORCHS_OWN
@pytest.mark.parametrize("make", [lambda: dense(depth=1), edges_compiled])
def test_torch_compile_computes_the_same(make, as_users_call):
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    model = make()
    faster = torch.compile(model, backend=backend)
    images = random_images(model, 3)
    with torch.no_grad():
        expected, found = model(images), faster(images)
    assert (found - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))


# Case 23 of the field's reports: the operators' version, and what a deployment needs to know


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_an_opset_is_taken_and_one_that_can_not_be_had_is_refused(opset, tmp_path):
    vit = dense()
    path = cv.export(vit, tmp_path / "model.onnx", opset=opset)
    assert [i.version for i in onnx.load(path).opset_import if i.domain == ""] == [opset]
    assert_equal(vit, lambda images: by_onnxruntime(path, images))


@pytest.mark.parametrize("opset", [1, 7, 11, 99])
def test_an_opset_that_can_not_be_had_is_refused_and_no_file_is_left(opset, tmp_path):
    with pytest.raises(cv.CircuitError, match=rf"opset {opset}[,:]"):
        cv.export(dense(), tmp_path / "model.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def known_by_onnxruntime(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def known_by_onnx(path):
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def known_by_torch(path):
    found = dict.fromkeys(
        [*FACTS, "mean", "std", "class_names", "interpolation", "resize", "crop_pct",
         "preprocessing"], "",
    )  # fmt: skip
    torch.export.load(path, extra_files=found)
    return {
        name: text.decode() if isinstance(text, bytes) else text for name, text in found.items()
    }


FACTS = ["input_size", "circuitvit_version", "fingerprint", "parameters", "macs"]
READERS = [
    ("model.onnx", known_by_onnxruntime), ("model.onnx", known_by_onnx),
    ("model.pt2", known_by_torch),
]  # fmt: skip


@pytest.mark.parametrize(("name", "read"), READERS, ids=["onnxruntime", "onnx", "pt2"])
def test_a_file_tells_classes_and_preprocessing(name, read, tmp_path):
    vit = dense(channels=3)
    vit.preprocessing = cv.Preprocessing(
        mean=(0.1, 0.2, 0.3), std=0.5, interpolation="bilinear", crop=0.875,
        class_names=("Café", "tench, Tinca tinca", "猫", '"x"'),
    )  # fmt: skip
    known = read(cv.export(vit, tmp_path / name))
    assert json.loads(known["class_names"]) == list(vit.preprocessing.class_names)
    assert json.loads(known["mean"]) == [0.1, 0.2, 0.3]
    assert json.loads(known["std"]) == [0.5, 0.5, 0.5]
    assert json.loads(known["input_size"]) == [3, 4, 4]
    assert (known["interpolation"], known["resize"]) == ("bilinear", "shortest")
    assert json.loads(known["crop_pct"]) == 0.875
    assert known["circuitvit_version"] == cv.__version__
    assert known["fingerprint"] == vit.fingerprint()
    assert int(known["parameters"]) == parameters(vit)
    assert int(known["macs"]) == macs(vit, (3, 4, 4))
    said = cv.Preprocessing.from_dict(json.loads(known["preprocessing"]))
    assert said == vit.preprocessing


def test_what_is_not_known_is_not_in_the_file(tmp_path, as_users_call):
    edge = edges_compiled()
    known = known_by_onnxruntime(cv.export(edge, tmp_path / "model.onnx"))
    assert set(known) == set(FACTS)
    assert known["fingerprint"] == edge.fingerprint()
    other = known_by_onnxruntime(cv.export(Other(), tmp_path / "model.onnx"))
    assert set(other) == {*FACTS} - {"fingerprint"}


@pytest.mark.parametrize("to", ["onnx", "pt2", "timm", "transformers"])
def test_class_names_that_do_not_fit_are_left_out_with_a_warning(to, tmp_path):
    vit = dense()
    vit.preprocessing = cv.Preprocessing(mean=(0.3,), class_names=("a", "b", "c"))
    with pytest.warns(UserWarning, match="3 class names for 4 classes. Mean and std stay"):
        path = cv.export(vit, tmp_path / "model", to=to)
    if to == "onnx":
        assert "class_names" not in known_by_onnxruntime(path)
        assert known_by_onnxruntime(path)["mean"] == "[0.3]"
    if path.is_dir():
        assert cv.load_vit(path).preprocessing.class_names in (None, vit.preprocessing.class_names)
    assert vit.preprocessing.class_names == ("a", "b", "c")


@pytest.mark.parametrize("to", ["onnx", "pt2", "timm", "transformers"])
def test_forward_hooks_do_not_get_into_what_is_exported(to, tmp_path):
    vit = dense(channels=3)
    images = random_images(vit, 5)
    expected = vit(images).detach()
    vit.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    assert not torch.allclose(vit(images), expected, atol=1e-2)
    path = tmp_path / f"model.{to}"
    with pytest.warns(UserWarning, match=r"forward hooks on blocks\.0\.mlp"):
        cv.export(vit, path, to=to)
    run = {"onnx": by_onnxruntime, "pt2": by_torch_export}.get(to)
    found = cv.load_vit(path)(images) if run is None else run(path, images)
    assert torch.allclose(torch.as_tensor(found), expected, atol=1e-4)
    assert not torch.allclose(vit(images), expected, atol=1e-2)  # the caller's has its hook
