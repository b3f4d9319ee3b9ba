"""How is the XML in a slide's header parsed when a stranger wrote it?

Vendors put their metadata into a TIFF tag as XML. It is parsed with bounds that are checked before and while the tree
grows, so that neither its size, its depth nor its entities can cost more than a second or 256 MB:

1. the text, the number of tags and the number of attributes are counted before the parser sees them;
2. a document type, which is where entities are declared, is refused the moment it begins;
3. nesting is bounded, so code that walks the tree may recurse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from online_patching.formats.header_reader import HeaderReader

# Philips stores its label and macro pictures in the XML: a few MB. Ventana describes every pair of neighbouring tiles.
MAX_CHARACTERS = 16 << 20
MAX_TAGS = 200_000
MAX_ATTRIBUTES = 300_000
MAX_DEPTH = 64


class _BoundedTree(TreeBuilder):
    """Builds the tree; a document type or too deep nesting ends the parse."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, *_: str | None) -> None:
        """Called where a document type begins, before any entity of it is read."""
        raise ValueError("it declares a document type, which no slide needs and which may hold entities")

    def start(self, tag: str, attributes: dict[str, str], /) -> Element:
        """Open an element."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} deep")
        return super().start(tag, attributes)

    def end(self, tag: str, /) -> Element:
        """Close an element."""
        self._depth -= 1
        return super().end(tag)


def parse_xml(reader: HeaderReader, text: str) -> Element:
    """The root element of a header's XML.

    Args:
        reader: Of the file, which an error names.
        text: The XML document.

    Raises:
        SlideFormatError: Not well-formed, too large, too deep, or with a document type.
    """
    # Every attribute needs one "=" and every element one "<", so these counts bound the tree.
    for what, count, allowed in (
        ("characters", len(text), MAX_CHARACTERS),
        ("tags", text.count("<"), MAX_TAGS),
        ("attributes", text.count("="), MAX_ATTRIBUTES),
    ):
        if count > allowed:
            raise reader.error(f"its XML header has {count} {what} (allowed: {allowed}): the file is damaged")
    parser = XMLParser(target=_BoundedTree())  # noqa: S314 - document types are refused, size and depth bounded
    try:
        parser.feed(text.strip("\0 \r\n\t"))
        root: Element = parser.close()
    except (ParseError, ValueError) as error:
        raise reader.error(f"its XML header cannot be read ({error}): the file is damaged") from error
    return root


def local_name(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def children(element: Element, *path: str) -> Iterator[Element]:
    """Descendants along a path of names, whatever their namespaces."""
    if not path:
        yield element
        return
    for child in element:
        if local_name(child) == path[0]:
            yield from children(child, *path[1:])


def child_text(element: Element, *path: str) -> str:
    """Text of the first descendant along a path, or empty."""
    found = next(children(element, *path), None)
    return (found.text or "").strip() if found is not None else ""


def attribute_number(reader: HeaderReader, element: Element, name: str) -> float:
    """A numeric attribute of an element.

    Raises:
        SlideFormatError: It is missing or no finite number.
    """
    text = element.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise reader.error(f"its XML header has {name}={text[:40]!r} in <{local_name(element)}>: a number is expected")
    return value
