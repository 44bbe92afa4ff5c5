"""Tables on the command line: every cell is shown, however narrow the terminal is."""

import pytest

from circuitvit.cli.app import say, show

TABLE = [
    ["model", "top-1", "ms, batch 64", *(f"column {index}" for index in range(9))],
    ["a model", "65.8% (64.9%–66.7%)", "12.5", *(f"{index}.25" for index in range(9))],
    ["another", "", "1.01", *[""] * 9],
]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_cell_is_there_behind_the_models_name(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show(TABLE)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in printed
    for cell in (cell for row in TABLE for cell in row):
        for word in cell.replace(", ", " ").split():
            assert word in printed
    rows = [line for line in lines if line.strip().startswith("a model")]
    assert [word for row in rows for word in row.split()[2:]] == ["65.8%", *TABLE[1][2:]]
    assert (len(rows) > 1) == (width < 200)


def test_rows_that_say_nothing_in_a_part_are_left_out_there(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    show(TABLE)
    printed = capsys.readouterr().out
    assert printed.count("a model") > 2
    assert printed.count("another") == 1
    monkeypatch.setenv("COLUMNS", "200")
    show([["unit", "value"], ["a0.h0", ""]])
    assert "a0.h0" in capsys.readouterr().out


def test_names_are_no_markup_and_can_not_command_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    show([["model [bold]x", "n"], ["[link=http://x]a[/link]", "[red]"], ["\x1b[31mb\x07\r", "1"]])
    say("class \x1b]0;title\x07 \u202eabc, é, \U0001f600")
    printed = capsys.readouterr().out
    for shown in (
        "model [bold]x",
        "[link=http://x]a[/link]",
        "[red]",
        r"\x1b[31mb\x07\r",
        r"\x1b]0;title\x07 \u202eabc, é, \U0001f600".replace(r"\U0001f600", "\U0001f600"),
    ):
        assert shown in printed
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(printed)
