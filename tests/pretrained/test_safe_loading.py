"""What stands beside weights in a checkpoint: plain values are read, code is named and refused."""

import argparse
import collections
import datetime
import os
import pathlib
import re
import warnings

import numpy as np
import pytest
import torch
from foreign_models import a_timm
from random_models import random_vit, shape
from typer.testing import CliRunner

import circuitvit as cv
from circuitvit.cli import app
from circuitvit.pretrained import examine

pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

HARMLESS = {
    "arguments": argparse.Namespace(lr=np.float32(0.1), out=pathlib.Path("/runs"), seed=None),
    "numbers of NumPy": [np.float64(0.9), np.int64(3), np.bool_(True), np.float16(1), np.str_("a")],
    "arrays": {"a": np.ones((2, 3)), "b": np.array(["x", 1], dtype=object), "c": np.arange(3) > 1},
    "dtypes": [np.dtype("float32"), np.float32, np.dtype("int8")],
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\a"), pathlib.Path("x")],
    "dates": [datetime.datetime(2024, 1, 1), datetime.date(2024, 1, 1), datetime.timedelta(1)],
    "containers": [
        collections.defaultdict(list, {1: [2]}), collections.deque([1, 2]), frozenset([1]), {2},
        collections.Counter("ab"), collections.OrderedDict(a=1), range(3), slice(1), 1j, b"x",
    ],
    "states of generators": [np.random.RandomState(0).get_state(), torch.get_rng_state()],
    "versions": [torch.__version__, torch.float16, torch.device("cpu"), torch.Size([1])],
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_plain_values_beside_weights_are_read(what, zipped, tmp_path):  # case 19
    module = a_timm()
    content = {"state_dict": module.state_dict(), "epoch": 3, "args": HARMLESS[what]}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=zipped)
    before = set(map(repr, torch.serialization.get_safe_globals()))
    assert examine(tmp_path / "last.pth", heads=3).vit.config.classes == 5
    assert set(map(repr, torch.serialization.get_safe_globals())) == before


def test_what_the_user_allows_stays_allowed(tmp_path):
    torch.save({"model": a_timm().state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        examine(tmp_path / "a.pt", heads=3)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


class Settings:
    """A class of a training script."""


class Running:
    def __reduce__(self):
        return os.getenv, ("HOME",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
@pytest.mark.parametrize(
    ("thing", "name"),
    [(Settings(), "test_safe_loading.Settings"), (Running(), "os.getenv")],
    ids=["a class", "a call"],
)
def test_what_could_run_code_is_named_in_one_plain_line(thing, name, zipped, tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"state_dict": a_timm().state_dict(), "config": thing}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(cv.CircuitError) as caught:
            cv.load_vit(path, heads=3)
    text = str(caught.value)
    assert name in text
    assert "never ones that could run code" in text
    assert not re.search(r"\x1b|\n|weights_only|safe_globals|trust", text)
    assert caught.value.__cause__ is None  # whose text advises to trust the file


def test_whole_models_are_named(tmp_path):
    torch.save(a_timm(), tmp_path / "model.pth")
    with pytest.raises(cv.CircuitError, match=r"holds a whole model with its code \(timm\.layers"):
        cv.load_vit(tmp_path / "model.pth")
    with pytest.raises(cv.CircuitError, match="ends in '.npz', .*JAX's weights are read by timm"):
        (tmp_path / "w.npz").write_bytes(b"")
        cv.load_vit(tmp_path / "w.npz")


def test_what_is_blocked_is_called_by_its_name(tmp_path):
    path = tmp_path / "last.pth"
    for content, match in (
        ({"model": a_timm().state_dict(), "act": torch.nn.GELU},
         r"holds torch\.nn\.modules\.activation\.GELU beside weights.*Leave it out of the file"),
        (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU()), "holds a whole model with"),
    ):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(cv.CircuitError, match=match):
            cv.load_vit(path)


def test_files_of_ours_say_what_reads_them(tmp_path):
    vit = random_vit(shape())
    path = cv.Circuit(vit.config, []).save(tmp_path / "circuit.json")
    for name in ("circuit.json", "circuit.pth", "circuit"):
        source = tmp_path / name
        source.write_bytes(path.read_bytes())
        with pytest.raises(
            cv.CircuitError, match="is a circuit, which circuitvit.Circuit.load reads; load_vit"
        ):
            cv.load_vit(source)
        told = CliRunner().invoke(app, ["inspect", str(source)])
        assert "which circuitvit.Circuit.load reads" in str(told.exception)
    vit.save_pretrained(tmp_path / "model")
    with pytest.raises(cv.CircuitError, match="the config of a model, whose folder"):
        cv.load_vit(tmp_path / "model" / "config.json")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"metadata": {"total_size": 3}, "weight_map": {}}')
    with pytest.raises(cv.CircuitError, match="is the index of a model in several files: give its"):
        cv.load_vit(index)
