"""Names with markup in them show as text in Chromium: no script runs, on any page or card."""

from pathlib import Path
from typing import Any

import pytest
from attack.markup import EVIL

KIND = "markup"
pytestmark = [pytest.mark.attack, pytest.mark.browser]
TOUCHED = """() => { for (const type of ['mouseover', 'mouseenter', 'focus', 'click'])
    for (const part of document.querySelectorAll('body *')) part.dispatchEvent(new Event(type)); }"""


def as_pages(room: Path) -> list[Path]:
    """Every page in a folder; Markdown becomes one, as readers that allow HTML show it."""
    from markdown_it import MarkdownIt

    for file in sorted(room.rglob("*.md")):
        for name in ("commonmark", "gfm-like", "js-default"):
            try:
                reader = MarkdownIt(name, {"html": True, "linkify": False})
                reader.enable("table")
            except (ModuleNotFoundError, ValueError):
                continue
            body = reader.render(file.read_text())
            file.with_suffix(f".{name}.html").write_text(
                f"<!doctype html><meta charset=utf-8>{body}"
            )
    return sorted(room.rglob("*.html"))


def opened(browser: Any, page: Path) -> str:
    """What is wrong when a page is opened and touched everywhere; "" if nothing."""
    dialogs: list[str] = []
    tab = browser.new_page()
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    try:
        tab.goto(page.as_uri(), wait_until="load", timeout=60_000)
        tab.wait_for_timeout(200)
        tab.evaluate(TOUCHED)
        tab.wait_for_timeout(50)
        links = tab.evaluate(
            "[...document.links].map(l => l.href).filter(h => h.startsWith('javascript'))"
        )
        handlers = tab.evaluate(
            "[...document.querySelectorAll('*')].filter(p => [...p.attributes].some(a => "
            "a.value.includes('pwned') && a.name.startsWith('on'))).length"
        )
        pwned = tab.evaluate("typeof window.pwned !== 'undefined'")
    finally:
        tab.close()
    told = {
        "a script ran": pwned,
        "a link runs code": links,
        "an element handles events": handlers,
        "a dialog": dialogs,
    }
    return ", ".join(what for what, found in told.items() if found)


def test_names_with_markup_are_shown_as_text(workers, browser, tmp_path, tally):
    room = tmp_path / "pages"
    made = workers.run("markup:make", str(room), seconds=120)
    assert not made.error, made.message
    pages = as_pages(room)
    assert len(pages) > 25, [made.value, pages]
    for page in pages:
        tally.case(str(page.relative_to(room)), opened(browser, page))
    tally.settle()


def test_a_title_is_shown_literally(workers, browser, tmp_path, tally):
    room = tmp_path / "pages"
    assert not workers.run("markup:make", str(room), seconds=120).error
    for number, text in enumerate(EVIL):
        tab = browser.new_page()
        tab.goto((room / f"page {number} True.html").as_uri())
        shown = tab.evaluate("document.body.textContent")
        tab.close()
        first = text.split("\n")[0]
        tally.case(f"title {first!r}", "" if first in shown else "is not shown as it is")
    tally.settle()
