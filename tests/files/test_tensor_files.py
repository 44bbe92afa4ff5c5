"""Files of tensors: read into memory of their own, and recognised when they are something else."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest
import torch
from foreign_models import a_timm
from random_models import random_vit, shape
from safetensors import SafetensorError
from safetensors.torch import save_file

import circuitvit as cv
from circuitvit.files.tensor_files import read_tensors, write_tensors
from circuitvit.pretrained import examine

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def archived(kind):
    held = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(held, "w") as file:
            file.writestr("model.pth", "weights")
    elif kind == "npz":
        with zipfile.ZipFile(held, "w") as file:
            file.writestr("kernel.npy", b"\x93NUMPY")
    elif kind == "script":
        with zipfile.ZipFile(held, "w") as file:
            file.writestr("model/constants.pkl", b"")
            file.writestr("model/data.pkl", b"")
    else:
        with tarfile.open(fileobj=held, mode="w") as file:
            file.addfile(tarfile.TarInfo("model.pth"))
    return held.getvalue()


OTHERS = {
    "a git-lfs pointer, .*: run 'git lfs pull'": LFS,
    "an HTML or XML page, not weights": b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Log in</body></html>",
    "an HTML or XML page,": b"<html lang='en'>",
    "an HTML or XML page, not": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a text that begins 'Entry not found'": b"Entry not found",
    "a JSON file": b'{"error": "gated"}',
    "the index of a model in several files: give its folder": b'{"metadata": {"total_size": 1}, ',
    "empty: ": b"",
    "a gzip archive: unpack it first": gzip.compress(b"weights"),
    r"a zip archive: unpack it first.*\(model.pth\)": archived("zip"),
    "a tar archive: unpack it first": archived("tar"),
    "an .npz file of NumPy arrays": archived("npz"),
    "a TorchScript model, which holds code": archived("script"),
    "cut short: the end of the file is missing": b"PK\x03\x04" + b"\0" * 100,
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["a.pth", "a.SAFETENSORS", "a.tar", "nothing"])
def test_other_files_in_place_of_weights_are_recognised(what, name, tmp_path):  # case 19
    (tmp_path / name).write_bytes(OTHERS[what])
    for source, options in ((tmp_path / name, {}), (a_timm(), {"checkpoint": tmp_path / name})):
        with pytest.raises(cv.CircuitError, match=f"{name} is {what}"):
            cv.load_vit(source, **options)


def test_pointers_of_git_lfs_in_folders_are_recognised(tmp_path):
    timm = pytest.importorskip("timm", reason="timm comes with circuitvit[timm]")
    from foreign_models import a_transformers

    random_vit(shape()).save_pretrained(tmp_path / "ours")
    a_transformers("ViT").save_pretrained(tmp_path / "transformers")
    small = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(small, tmp_path / "timm", safe_serialization=True)
    for kind in ("ours", "transformers", "timm"):
        (tmp_path / kind / "model.safetensors").write_bytes(LFS)
        with pytest.raises(cv.CircuitError, match="model.safetensors .*git-lfs pointer.*lfs pull"):
            cv.load_vit(tmp_path / kind)


def test_endings_in_capitals_and_wrong_ones_are_read_by_content(tmp_path):
    module = a_timm()
    state, known = module.state_dict(), cv.load_vit(module).fingerprint()
    for name in ("A.PTH", "a.Pt", "a.pth.tar", "a.safetensors", "blob"):
        torch.save(state, tmp_path / name)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("B.SAFETENSORS", "b.pth"):
        save_file(state, tmp_path / name)
    for path in tmp_path.iterdir():
        assert examine(path, heads=3).vit.fingerprint() == known, path


def test_tensors_have_memory_of_their_own_at_even_addresses(tmp_path):  # case 25
    given = {"odd": torch.arange(3, dtype=torch.uint8), "more": torch.randn(5, 7).double()}
    path = tmp_path / "t.safetensors"
    save_file(given, path, metadata={"said": "so"})
    tensors, metadata = read_tensors(path)
    with path.open("r+b") as file:
        file.truncate(8)
    assert metadata == {"said": "so"}
    assert all(torch.equal(tensors[name], value) for name, value in given.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors.values())


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path):
    vit = random_vit(shape())
    vit.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    loaded = [cv.ViT.from_pretrained(tmp_path), cv.load_vit(path)]
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place, in the same pages
    for model in loaded:
        assert model.fingerprint() == vit.fingerprint()
        assert all(p.data_ptr() % 64 == 0 for p in model.parameters())


def test_no_other_module_opens_safetensors():
    from pathlib import Path

    for path in Path(cv.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert path.name == "tensor_files.py" or "safe_open" not in text, path
        assert "load_file" not in text, path


TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(3, dtype=torch.int64),
    "half": torch.ones(2, 2, dtype=torch.bfloat16).T,
    "none": torch.zeros(0, 4),
    "truth": torch.tensor([True, False]),
}
TEXTS = {"z": "ü\n", "format": "pt", "a": "", "told": '{"x": 1}'}


def test_the_same_tensors_and_texts_are_the_same_bytes(tmp_path):
    """The library orders metadata in another way in each process, and in each call."""
    written = {
        write_tensors(tmp_path / f"{number}.safetensors", tensors, texts).read_bytes()
        for number, (tensors, texts) in enumerate(
            [(TENSORS, TEXTS)] * 8
            + [(dict(reversed(TENSORS.items())), dict(reversed(TEXTS.items())))]
        )
    }
    assert len(written) == 1
    tensors, texts = read_tensors(tmp_path / "0.safetensors")
    assert texts == TEXTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert all(tensors[name].dtype == value.dtype for name, value in TENSORS.items())


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = write_tensors(tmp_path / "t.safetensors", TENSORS, TEXTS)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            tensors, texts = read_tensors(path)
        except SafetensorError:
            refused += 1
            continue
        named = {name: text for name, text in texts.items() if not name.startswith("circuit")}
        assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
        assert {n: t for n, t in named.items() if n in TEXTS} == TEXTS
    assert refused > 0.9 * len(whole)


def test_files_without_a_digest_load_as_before(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "t.safetensors", metadata={"x": "y"})
    tensors, texts = read_tensors(tmp_path / "t.safetensors")
    assert texts == {"x": "y"}
    assert torch.equal(tensors["a"], torch.ones(3))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "a\0b", "x" * 5000, tmp_path / "missing"):
        with pytest.raises(OSError):  # noqa: PT011 - of several types
            read_tensors(path)
