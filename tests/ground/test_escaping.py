"""Text from outside shows literally in rendered Markdown, and stays readable in the source."""

import pytest
from rendered_markdown import elements_and_text

from circuitvit.charts.tables import markdown_table
from circuitvit.escaping import markdown_code, markdown_lines, markdown_text

markdown_it = pytest.importorskip("markdown_it")

NAMES = [
    "<script>alert(1)</script>", "<b onclick=x>", "a|b", "a\\|b", "a\\", "`x`", "``a|`b", "<!-- x",
    "[x](javascript:alert(1))", "![](http://x/y.png)", "<http://a.b>", "http://x.org", "www.x.org",
    "*a* **b**", "_a_ __b__", "~~x~~", "&amp; &#60;", "&lt;b&gt;", "\\<b>", "# h", "x #", "$a$",
    "line\nbreak\n\n<b>", "\x1b[31mred", "]]>", "[^1]", "<br/>", "<?php ?>", "<![CDATA[x]]>",
]  # fmt: skip
PLAIN = ["vit_base_patch16", "cat → dog", "a0.h3->m2", "-0.5", "95.1% (93.0%–97.2%)", "1e-05",
         "timm/vit.augreg", "3 of 12", "a1: 2 of 3 heads"]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *PLAIN])
@pytest.mark.parametrize(
    "place",
    [
        lambda name: markdown_table([["model"], [name]]),
        lambda name: f"# About {markdown_text(name)}",
        lambda name: f"On {markdown_text(name)}.",
        lambda name: f"As {markdown_code(name)}.",
    ],
    ids=["cell", "heading", "sentence", "code"],
)
def test_a_name_is_shown_literally_and_makes_no_element(place, name):
    elements, text = elements_and_text(place(name))
    assert not elements
    assert " ".join(name.replace("\x1b", "?").split()) in text


def test_a_cell_stays_one():
    rows = markdown_table([["model", "top-1"], ["a\\|b|`c|`", "1"]])
    page = markdown_it.MarkdownIt("commonmark").enable("table").render(rows)
    assert page.count("<td>") == 2


@pytest.mark.parametrize("name", PLAIN)
def test_what_needs_no_escaping_has_none(name):
    assert markdown_text(name) == name


def test_lines_of_a_command_stay_code():
    elements, text = elements_and_text(markdown_lines("a <b>\n\n# c\r[x](y)\u2028<i>"))
    assert not elements
    assert "# c" in text
    assert "[x](y)" in text
