import io
import sys

from rich.console import Console

import circuitvit as cv
from circuitvit import progress as module


def test_off_a_terminal_it_is_silent(capsys):
    with module.progress("work", 3) as advance:
        advance("kept 1")
        advance(steps=2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_on_a_terminal_it_shows_work_rate_and_note(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    with module.progress("ACDC", 3) as advance:
        advance("kept 1")
        advance("kept 2", steps=2)
    text = shown.getvalue()
    for part in ("ACDC", "3/3", "kept 2"):
        assert part in text


def test_discovery_is_silent_off_a_terminal(capsys):
    from random_models import random_pairs, random_vit, shape

    vit = random_vit(shape())
    cv.acdc(vit, random_pairs(vit, 2), tau=0.1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_work_inside_other_work_has_a_line_of_its_own_while_it_lasts(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    with module.progress("Classes", 2) as advance:
        bar = module._SHOWN.get()
        for name in ("cat", "dog"):
            with module.progress("ACDC", 5) as step:
                step(name, steps=5)
                assert [task.description for task in bar.tasks] == ["Classes", "ACDC"]
                assert bar.tasks[1].completed == 5
            assert len(bar.tasks) == 1
            advance()
    assert module._SHOWN.get() is None
    assert "2/2" in shown.getvalue()
