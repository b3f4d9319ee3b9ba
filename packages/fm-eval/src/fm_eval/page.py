"""How do tables, figures and notes become one HTML page that needs nothing else?

No script, no network, no font to load; colours by CSS variables, dark and light; every table has a caption and headers
with a scope, and scrolls by itself where the screen is narrow, by keyboard too. What comes from a result file is
escaped by whoever puts it into a cell or note. The layout is `page_template.html`. After: every module that makes a
section; report, which puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

UNDEFINED = "undefined"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading of its own.

    Attributes:
        anchor: id of the heading: lower-case letters, digits and hyphens.
        title: plain text.
        body: HTML.
    """

    anchor: str
    title: str
    body: str


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: plain text.
        lead: HTML above the first section.
        sections: in order; those with an empty body are left out.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in shown)
    fields = {
        "title": escape(title),
        "lead": lead,
        "contents": f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(shown) > 1 else "",
        "sections": "\n".join(
            f'<section aria-labelledby="{section.anchor}"><h2 id="{section.anchor}">{escape(section.title)}</h2>'
            f"{section.body}</section>"
            for section in shown
        ),
    }
    template = (files("fm_eval") / "page_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(fields)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows.

    Args:
        caption: plain text.
        head: HTML of the header cells.
        rows: HTML of the cells; the first of each row is its header.
    """
    header = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return scrolling(
        f"<table><caption>{escape(caption)}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>",
        label=caption,
    )


def scrolling(html: str, *, label: str) -> str:
    """A part that scrolls sideways where it is wider than the screen; by keyboard too, so it takes the focus."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(label, quote=True)}">{html}</div>'


def note(text: str) -> str:
    """A paragraph of plain text that explains what follows."""
    return f'<p class="note">{escape(text)}</p>'


def figure(drawing: str, *, title: str = "", caption: str = "") -> str:
    """A drawing with plain-text title and caption."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{heading}<div class="plot">{drawing}</div>{below}</figure>'


def undefined(reason: str | None) -> str:
    """The word `undefined` with its reason, which is read out and shown on touch screens too."""
    return f'{UNDEFINED}<small class="reason">{escape(reason or "not measured")}</small>'


def definitions(summary: str, facts: dict[str, object]) -> str:
    """A folded list of names and plain-text values under a summary of HTML."""
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return f"<details><summary>{summary}</summary><dl>{items}</dl></details>"
