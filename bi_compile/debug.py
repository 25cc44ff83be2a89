"""The dump: numbered readable graphs of each compilation and its report, as files a person can read."""

import itertools
from pathlib import Path

from torch import fx

from bi_compile.report import Verdict

_numbers = itertools.count()


class Dump:
    """Writes the stages of one compilation below `folder`; does nothing where no folder was asked for."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) / f"{next(_numbers):03d}" if folder else None
        self._stage = itertools.count()
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)

    def graph(self, name: str, graph: fx.Graph) -> None:
        """Write a graph as Python code."""
        if self._folder:
            code = graph.python_code("self", verbose=False, include_stride=True).src
            (self._folder / f"{next(self._stage):02d}_{name}.py").write_text(code)

    def verdicts(self, name: str, verdicts: list[Verdict]) -> None:
        """Write the verdict of each op of a final graph."""
        if self._folder:
            rows = [f"{v.kind:<11}  {v.op:<40}  {v.where or ''}".rstrip() for v in verdicts]
            (self._folder / f"{next(self._stage):02d}_{name}.txt").write_text("\n".join(rows) + "\n")
