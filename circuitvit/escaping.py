"""The only place where text from outside becomes part of a page.

The page's JavaScript never writes HTML: it sets `textContent`.
"""

import json
import re
from typing import Any

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}


def escape(value: object) -> str:
    """Text that shows `value` literally in HTML, in an attribute, in SVG and in plotly's texts.

    Plotly's pseudo-HTML knows few named entities (no `&quot;`), hence the numeric ones. What has
    no place in UTF-8 or XML (lone surrogates, control characters) becomes a question mark.
    """
    return "".join(_ENTITIES.get(letter, letter) for letter in _printed(value))


def _printed(value: object) -> str:
    """The text with a question mark in place of what has no place in UTF-8 or XML."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if _is_printed(letter) else "?" for letter in text)


_MARKS = re.compile(
    r"[\\`*\[\]|~$<&]"
    r"|(?<!-)>"  # an arrow stays one
    r"|(?<![^\W_])_|_(?![^\W_])"  # one inside a word is no emphasis
    r"|(?<!\S)\#"
    r"|(?<=:)//|(?<=\bwww)\.",
    re.IGNORECASE,
)
_AS_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "//": "&#47;&#47;", ".": "&#46;"}


def markdown_text(value: object) -> str:
    """Text that shows `value` literally in Markdown: on one line, in a cell or amid a sentence.

    Only what would be mark-up is escaped, so that names can be read in the source too. It is not
    for the start of a line, where a dash or a number begins a list.
    """
    text = " ".join(_printed(value).split())
    return _MARKS.sub(lambda found: _AS_ENTITIES.get(found[0], f"\\{found[0]}"), text)


def markdown_code(value: object) -> str:
    """A code span that shows `value` literally, but for its white space."""
    text = " ".join(_printed(value).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text or not text else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown_lines(value: object) -> str:
    """An indented block of code that shows the lines of `value` literally."""
    return "\n".join(f"    {line}" for line in _printed(value).splitlines())


def json_in_script(value: Any) -> str:
    """JSON that can stand inside a `<script>` element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _is_printed(letter: str) -> bool:
    return (letter >= " " and letter not in "\x7f\ufffe\uffff") or letter in "\t\n\r"
