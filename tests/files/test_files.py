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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 66 + "]" * 66, "nested deeper than 64 levels"),
        ("{" * 5, "not a whole value"),
        ("[" + "1" * 4301 + "]", "has 4,301 digits"),
        ("[" + "1" * 41 + "]", "has 41 digits"),
        ("NaN", "holds NaN, which is no number of JSON"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ("[1e999]", "1e999 is too large"),
        ('["\\ud800"]', "half of a letter"),
        ('{"\\udfff": 1}', "half of a letter"),
        ("\ufeff\ufeff1", "not a whole value"),
        ("[" + "[]," * 5_000_001 + "1]", "5,000,002 lists and dicts"),
    ],
)
def test_json_is_read_within_bounds(tmp_path, text, reason):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(cv.CircuitError, match=reason):
        read_json(path, what="value")


def test_json_within_the_bounds_is_read(tmp_path):
    path = tmp_path / "v.json"
    for text, value in (
        ("[" * 64 + "]" * 64, None),
        ("[" + "9" * 40 + "]", [int("9" * 40)]),
        ('"\\ud83d\\ude00"', "😀"),
        ("[1e308, 1e-999]", [1e308, 0.0]),
        ("\ufeff[1]", [1]),
    ):
        path.write_text(text, encoding="utf-8")
        found = read_json(path, what="value")
        assert value is None or found == value
    path.write_text("[NaN, 1e999]")
    assert read_json(path, what="config of another library", finite=False)[1] == float("inf")


def test_what_is_no_file_or_too_large_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in (
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "large", "1,099,511,627,776 bytes, at most"),
        (tmp_path / "loop", "cannot read|no value"),
        ("/dev/zero", "no regular file"),
        ("a\0b", "NUL"),
        ("x" * 5000, "more than 4,095 bytes"),
        ("x" * 300, "more than 255 bytes"),
        (tmp_path, "cannot read|no regular file"),
    ):
        with pytest.raises(cv.CircuitError, match=reason):
            read_json(path, what="value")
