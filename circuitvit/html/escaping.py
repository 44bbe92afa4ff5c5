"""The only place where text from outside becomes part of a page.

The page's JavaScript never writes HTML: it sets `textContent`.
"""

import json
from typing import Any

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}


def escape(value: object) -> str:
    """Text that shows `value` literally in HTML, in an attribute, in SVG and in plotly's texts.

    Plotly's pseudo-HTML knows few named entities (no `&quot;`), hence the numeric ones. What has
    no place in UTF-8 or XML (lone surrogates, control characters) becomes a question mark.
    """
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(_ENTITIES.get(letter, letter if _is_printed(letter) else "?") for letter in text)


def json_in_script(value: Any) -> str:
    """JSON that can stand inside a `<script>` element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _is_printed(letter: str) -> bool:
    return (letter >= " " and letter not in "\x7f\ufffe\uffff") or letter in "\t\n\r"
