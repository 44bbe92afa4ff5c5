"""Rows of text as Markdown and as HTML; the first row is the header."""

from collections.abc import Sequence

from circuitvit.escaping import escape, markdown_text


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table, escaped."""
    header, *body = [[markdown_text(cell) for cell in cells] for cells in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as an HTML table, escaped."""
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = (
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
