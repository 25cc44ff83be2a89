"""How far a long command has come: one line on a terminal, nothing elsewhere."""

import sys
from types import TracebackType


class Progress:
    """Shows the current step and how many calls it has made, by `rich` where that is installed."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._calls = 0
        self._name = ""
        self._status = None
        if self._on:
            try:
                from rich.console import Console
            except ImportError:
                return
            self._status = Console(stderr=True).status("")

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
        elif self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def step(self, name: str) -> None:
        """A new step begins."""
        self._name, self._calls = name, 0
        self._show(name)

    def tick(self, name: str) -> None:
        """A call of step `name` is made."""
        if name != self._name:
            self.step(name)
        self._calls += 1
        self._show(f"{name}: call {self._calls}")

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)
        elif self._on:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
