"""Progress: a line on a terminal, with and without rich, and nothing elsewhere."""

import io
import sys

import pytest

from bi_compile.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, monkeypatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress() as progress:
        progress.step("tracing")
        for _ in range(3):
            progress.tick("comparing")
    return stream.getvalue()


def test_without_rich_one_line_is_written_over_and_taken_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    shown = run(Terminal(), monkeypatch)
    assert [part.removeprefix("\x1b[K") for part in shown.split("\r")] == [
        "",
        "tracing",
        "comparing",
        "comparing: call 1",
        "comparing: call 2",
        "comparing: call 3",
        "",
    ]


def test_with_rich_its_status_is_shown(monkeypatch):
    pytest.importorskip("rich")
    assert "comparing" in run(Terminal(), monkeypatch)


def test_nothing_is_shown_where_nobody_looks(monkeypatch):
    assert run(io.StringIO(), monkeypatch) == ""
