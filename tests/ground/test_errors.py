"""Warnings name the user's line, and other libraries' reasons come in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from random_models import random_pairs, random_vit, shape

import circuitvit as cv
from circuitvit.errors import reason_of

SAME = (
    "import torch, circuitvit as cv\n"
    "x = torch.zeros(2, 1, 4, 4)\n"
    "cv.Pairs(clean=x, corrupt=x)\n"
)  # fmt: skip


@pytest.mark.parametrize("way", ["-c", "standard input", "file"])
def test_a_warning_names_the_line_that_called_the_package(way, tmp_path):
    if way == "file":
        (tmp_path / "circuitvit_mine.py").write_text(SAME)
    options = {"-c": ["-c", SAME], "standard input": ["-"], "file": ["circuitvit_mine.py"]}
    done = subprocess.run(
        [sys.executable, *options[way]], input=SAME, capture_output=True, text=True,
        cwd=tmp_path, check=True, env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )  # fmt: skip
    place = {"-c": "<string>:3:", "standard input": "<stdin>:3:", "file": "circuitvit_mine.py:3:"}
    assert place[way] in done.stderr
    assert "2 of 2 corrupt images equal their clean ones" in done.stderr


def test_a_warning_from_deep_inside_a_decorated_function_names_this_file():
    vit = random_vit(shape())
    pairs = random_pairs(vit, 2)
    circuit = cv.acdc(vit, pairs)
    with pytest.warns(UserWarning, match="these very pairs") as seen:
        cv.faithfulness_curve(vit, [circuit], pairs, controls=0)
    assert [Path(each.filename).name for each in seen] == ["test_errors.py"]


def test_reasons_are_one_line_without_colours_addresses_and_unsafe_advice():
    said = "\x1b[31mNo\x1b[0m way:\n  cannot read <_io.BytesIO object at 0x7f00>. Set weights_only=False."
    assert reason_of(ValueError(said)) == "No way: cannot read a _io.BytesIO"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert reason_of(ValueError("x" * 500), most=10) == "x" * 9 + "…"
