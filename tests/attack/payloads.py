"""Files and folders that try to run code of their own when they are read."""

import builtins
import io
import json
import os
import pdb
import pickle
import subprocess
import timeit
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def calls(mark: Path) -> dict[str, Any]:
    """What would make the mark, were it unpickled."""
    hidden = Calls(builtins.getattr, Calls(import_module, "builtins"), "eval")
    touch, code = f"touch '{mark}'", f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, code),
        "exec": Calls(builtins.exec, code),
        "open": Calls(builtins.open, str(mark), "w"),
        "subprocess": Calls(subprocess.getoutput, touch),
        "popen": Calls(os.popen, touch),
        "timeit": Calls(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "pdb": Calls(pdb.run, code),
        "mkdir": Calls(os.mkdir, str(mark)),
        "torch.save": Calls(torch.save, {}, str(mark)),
        "numpy": Calls(np.save, str(mark), np.zeros(1)),
        "nested eval": Calls(list, Calls(map, hidden, [code])),
    }


def _torch_files(folder: Path, name: str, call: Any) -> None:
    weights = {"head.weight": torch.zeros(2, 2), "head.bias": call}
    torch.save(call, folder / f"{name}, alone.pt")
    torch.save(weights, folder / f"{name}, among weights.pth")
    torch.save(
        {"state_dict": OrderedDict(weights), "args": Namespace(x=call)},
        folder / f"{name}, in a training's.ckpt",
    )
    torch.save(weights, folder / f"{name}, old form.bin", _use_new_zipfile_serialization=False)
    (folder / f"{name}, bare.pt").write_bytes(pickle.dumps(call))
    (folder / f"{name}, protocol 0.pt").write_bytes(pickle.dumps(weights, protocol=0))
    (folder / f"{name}, under another name.safetensors").write_bytes(pickle.dumps(call))
    (folder / f"{name}, under another name.json").write_bytes(pickle.dumps(call))


def _arrays(folder: Path, name: str, call: Any) -> None:
    held = np.array([call, 1], dtype=object)
    np.savez(folder / f"{name}.npz", images=held, labels=held)
    file = io.BytesIO()
    np.save(file, held, allow_pickle=True)
    with zipfile.ZipFile(folder / f"{name}, one of them.npz", "w") as archive:
        good = io.BytesIO()
        np.save(good, np.zeros((4, 8, 8), np.uint8))
        archive.writestr("images.npy", good.getvalue())
        archive.writestr("labels.npy", file.getvalue())
    (folder / f"{name}.npy").write_bytes(file.getvalue())


def _script(folder: Path, mark: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save([x], str(mark))
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)).save(str(folder / "script.pt"))


PYTHON = "open({mark!r}, 'w').close()\nclass Config: pass\nModel = Processor = Config\n"


def _code_folders(folder: Path, mark: Path) -> None:
    """Model folders with Python in them."""
    code = PYTHON.format(mark=str(mark))
    asked = {
        "AutoConfig": "evil.Config", "AutoModel": "evil.Model",
        "AutoModelForImageClassification": "evil.Model", "AutoImageProcessor": "evil.Processor",
    }  # fmt: skip
    bodies = {
        "auto_map": {"model_type": "evil", "auto_map": asked},
        "auto_map of a ViT": {"model_type": "vit", "auto_map": asked, "architectures": ["ViTForImageClassification"]},
        "auto_map of one in another": {"model_type": "vit", "auto_map": {k: f"some/where--{v}" for k, v in asked.items()}},
        "timm": {"architecture": "evil", "pretrained_cfg": {"custom_load": True, "file": "evil.py"}},
        "own": {"format": "circuitvit.CircuitViT", "auto_map": asked, "custom_pipelines": {"x": {"impl": "evil.Model"}}},
    }  # fmt: skip
    for name, body in bodies.items():
        place = folder / f"folder, {name}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(body))
        processor = {"auto_map": asked, "image_processor_type": "Processor"}
        (place / "preprocessor_config.json").write_text(json.dumps(processor))
        for file in ("evil", "__init__", "sitecustomize", "usercustomize", "conftest", "config",
                     "torch", "timm", place.name, "modeling_vit"):  # fmt: skip
            (place / f"{file}.py").write_text(code)
        torch.save({"x": Calls(os.system, f"touch '{mark}'")}, place / "pytorch_model.bin")
        torch.save(Calls(os.system, f"touch '{mark}'"), place / "model.safetensors")


def _data_folder(folder: Path, mark: Path) -> None:
    """A folder of images with the loading script that `datasets` once ran."""
    place = folder / "script of images"
    place.mkdir()
    (place / f"{place.name}.py").write_text(PYTHON.format(mark=str(mark)))
    (place / "dataset_infos.json").write_text("{}")


def make(folder: str, mark: str) -> list[str]:
    """Write every payload, each with a mark of its own in its name's place; their names."""
    room = Path(folder)
    room.mkdir(parents=True)
    for name, call in calls(Path(mark)).items():
        _torch_files(room, name, call)
        _arrays(room, name, call)
    _script(room, Path(mark))
    _code_folders(room, Path(mark))
    _data_folder(room, Path(mark))
    return sorted(path.name for path in room.iterdir())


def read_all(path: str) -> list[str]:
    """Read a file with everything that reads files; the exceptions that are no CircuitError."""
    import circuitvit as cv

    readers: list[Callable[[str], Any]] = [
        cv.load_vit, lambda p: cv.load_vit(p, heads=2), lambda p: cv.load_vit("timm:vit_tiny_patch16_224", checkpoint=p),
        cv.ViT.from_pretrained, cv.CircuitViT.from_pretrained, cv.Adapter.load, cv.Pairs.load, cv.Circuit.load,
        cv.EdgeScores.load, cv.ClassCircuits.load, cv.Report.load, cv.load_splits,
        lambda p: cv.load_splits(p, image_size=8),
    ]  # fmt: skip
    told = []
    for number, reader in enumerate(readers):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(path)
        except cv.CircuitError:
            pass
        except Exception as cause:
            told.append(f"reader {number}: {type(cause).__name__}: {cause}")
    return told
