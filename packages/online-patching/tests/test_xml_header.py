"""XML that a stranger wrote: refused in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from online_patching import SlideFormatError
from online_patching.bytesource import ObjectInfo
from online_patching.formats.header_reader import HeaderReader
from online_patching.formats.xml_header import child_text, children, parse_xml
from slide_checks import MemorySource

READER = HeaderReader(MemorySource(b""), ObjectInfo(0, "1"))
ENTITIES = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10 if k else "bomb"}">' for k in range(12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"<!DOCTYPE a [{ENTITIES}]><a>&e11;</a>", "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        ("<a>&undeclared;</a>", "undefined entity"),
        ("<a>" * 60_000 + "</a>" * 60_000, "nested more than"),
        ("<a>" + "<b/>" * 2_000_000 + "</a>", "tags"),
        ("<a " + " ".join(f'b{k}=""' for k in range(1_000_000)) + "/>", "attributes"),
        ("<a>" + "x" * 100_000_000 + "</a>", "characters"),
        ("<a>", "no element found"),
        ("", "no element found"),
        ("\x00\x01", "not well-formed"),
    ],
    ids=["entities", "external", "undeclared", "deep", "tags", "attributes", "long", "open", "empty", "binary"],
)
def test_hostile_xml_is_refused_by_reason_and_at_once(text: str, reason: str) -> None:
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(SlideFormatError, match=reason):
        parse_xml(READER, text)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 256 << 20


def test_children_are_found_by_path_whatever_their_namespace() -> None:
    root = parse_xml(READER, '<r xmlns="urn:x"><a><b> one </b></a><a><b>two</b><c/></a></r>\0')
    assert [element.text for element in children(root, "a", "b")] == [" one ", "two"]
    assert child_text(root, "a", "b") == "one"
    assert child_text(root, "a", "missing") == ""
