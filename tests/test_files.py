import os
import stat

import pytest

import circuitvit as cv
from circuitvit.files import read_json, replacing, write_json, write_text


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "one")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("half of tw")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [item.name for item in path.parent.iterdir()] == ["b.txt"]


def test_an_interrupted_first_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "b.txt") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_was_written(tmp_path):
    before = os.umask(0o022)
    try:
        path = write_text(tmp_path / "b.txt", "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_json_survives(tmp_path):
    value = {"τ": 0.01, "edges": ["embed->m0"], "none": None}
    assert read_json(write_json(tmp_path / "v.json", value), what="value") == value


def test_what_can_not_be_read_is_refused_with_the_reason(tmp_path):
    with pytest.raises(cv.CircuitError, match="no value at .*no such file"):
        read_json(tmp_path / "v.json", what="value")
    with pytest.raises(cv.CircuitError, match="cannot read the value"):
        read_json(tmp_path, what="value")
