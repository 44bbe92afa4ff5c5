"""A user's own model and own folder of images: what the README tells them to do works as it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import randomised

import circuitvit as cv

timm = pytest.importorskip("timm", reason="timm is not installed; it comes with circuitvit[timm]")

README = (Path(__file__).parents[2] / "README.md").read_text()
SHAPE = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)
NAMES = ["bird", "cat", "dog"]


@pytest.fixture(scope="module")
def own_things(tmp_path_factory):
    """A timm model as timm saves it, and photographs in folders called as the model sees them."""
    folder = tmp_path_factory.mktemp("own")
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **SHAPE).eval()
    randomised(module, seed=3)
    timm.models.save_for_hf(
        module, folder / "my_model", model_config={"label_names": NAMES, "num_classes": 3},
        model_args=SHAPE, safe_serialization=True,
    )  # fmt: skip
    look = timm.data.create_transform(
        **timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=module)
    )
    draw = np.random.default_rng(0)
    for index in range(200):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        photograph = coarse.resize((25, 20), Image.Resampling.BILINEAR)
        with torch.no_grad():
            seen = NAMES[int(module(look(photograph)[None]).argmax())]
        (folder / "my_images" / seen).mkdir(parents=True, exist_ok=True)
        photograph.save(folder / "my_images" / seen / f"{index}.png")
    return folder


def python_example():
    code = re.findall(r"```python\n(.*?)```", README, flags=re.S)[1]
    assert "my_model" in code
    return code


def test_ten_lines_of_python_lead_from_a_folder_of_images_to_a_compiled_model(own_things):
    code = python_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=own_things, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small = cv.load_vit(own_things / "small")
    assert small.preprocessing.class_names == tuple(NAMES)
    assert "<title>" in (own_things / "circuit.html").read_text()[:2000]


def test_three_commands_do_the_same(own_things):
    lines = re.findall(r"^circuitvit (?:discover|draw|compile) .*$", README, flags=re.M)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [Path(sys.executable).parent / words[0], *words[1:]],
            cwd=own_things, capture_output=True, text=True, timeout=240, check=False,
            env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    circuit = cv.Circuit.load(own_things / "circuit.json")
    assert circuit.units()
    assert cv.load_vit(own_things / "small").config.classes == 3


def test_the_model_is_right_about_every_image_as_it_was_through_timms_own_loading(own_things):
    """The folders' names are what timm's model says of timm's loading."""
    vit = cv.load_vit(own_things / "my_model")
    splits = cv.load_splits(str(own_things / "my_images"), model=vit)
    assert splits.train.class_names == tuple(NAMES)
    for part in (splits.train, splits.validation, splits.test):
        agree = (vit(part.images).argmax(dim=1) == part.labels).float().mean()
        assert agree == 1
