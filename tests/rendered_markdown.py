"""Renders Markdown as a web page does, for the tests of escaping."""

import html
import re

import markdown_it

OURS = {"table", "thead", "tbody", "tr", "th", "td", "p", "h1", "code", "pre"}


def elements_and_text(markdown):
    reader = markdown_it.MarkdownIt("commonmark", {"html": True})
    page = reader.enable(["table", "strikethrough"]).render(markdown)
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    return set(re.findall(r"<([!?\w]+)", page)) - OURS, " ".join(text.split())
