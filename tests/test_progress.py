"""Is progress a bar on a terminal, and lines in the log of a job?"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(params=["online_patching", "ssl_train", "fm_eval"])
def progress_bar(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Of each package, none of which imports another one's."""
    function: Callable[..., Any] = importlib.import_module(f"{request.param}.progress").progress_bar
    return function


def work(progress_bar: Callable[..., Any]) -> None:
    with progress_bar(total=400, desc="index", unit="slide") as bar:
        for _ in range(400):
            bar.update(1)


def test_a_log_has_a_line_at_the_start_and_one_at_the_end(
    progress_bar: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    work(progress_bar)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    first, last = shown.splitlines()
    assert first.startswith("index: 0/400 [00:00")
    assert last.startswith("index: 400/400 [00:0")
    assert "slide/s" in last


def test_a_terminal_has_one_line_that_is_drawn_again(
    progress_bar: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(progress_bar)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "100%|" in shown.split("\r")[-1]
