"""The dump: numbered readable graphs of each compilation, its report and its kernels, as files and in logs.

`options={"dump": folder}` or BI_COMPILE_DUMP writes files, TORCH_LOGS="+bi_compile" logs the same texts, and
TORCH_TRACE has them as artifacts.
"""

import itertools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import fx

from bi_compile import inductor
from bi_compile.analysis.flow import BatchFlow
from bi_compile.inputs import batch_symbols, user_inputs
from bi_compile.report import Graph, Question, Report, Verdict
from bi_compile.report.code import annotated
from bi_compile.report.graphs import describe
from bi_compile.report.orders import orders

_log = logging.getLogger("bi_compile")


class Dump:
    """Shows the stages of one compilation, where anybody asked for them.

    folder: below which files are written, or None. dims: the batch dims of the inputs of `module`.
    questions: what was asked of the batch's size on the way to it.
    """

    def __init__(
        self,
        folder: str | None,
        module: fx.GraphModule,
        dims: Sequence[Sequence[int]],
        questions: Sequence[Question] = (),
    ) -> None:
        self._folder = _new_folder(Path(folder)) if folder else None
        self._inputs = user_inputs(module.graph)
        self._batch = batch_symbols(module, dims)
        self._number = itertools.count()
        self._last = ""
        self._report = Report(f"compilation {self._folder.name}" if self._folder else "compilation")
        self._report.questions += questions

    @property
    def on(self) -> bool:
        """Whether files or logs are wanted; a compilation from a cache would have none."""
        return self._folder is not None or _log.isEnabledFor(logging.DEBUG)

    def graph(self, name: str, graph: fx.Graph) -> None:
        """Show a graph as Python code, unless it is the one shown last."""
        code = annotated(graph, self._batch) if self.on else ""
        if self.on and code == self._last:
            return
        self._last = code
        self._show(f"{next(self._number):02d}_{name}.py", lambda: code or annotated(graph, self._batch))

    def verified(self, graph: fx.Graph, verdicts: Sequence[Verdict], flow: BatchFlow) -> Graph:
        """What a report keeps of a final graph; shows the report of the graphs so far."""
        found = describe(graph, verdicts, inputs=self._inputs, flow=flow, batch=self._batch)
        self._report.graphs.append(found)
        self._report.compilations = 1
        self._show("report.txt", lambda: f"{self._report}\n\n{self._report.table()}\n")
        if self.on and (text := orders(found)):
            self._show(f"{next(self._number):02d}_orders.txt", lambda: text)
        if self._folder:
            (self._folder / "report.json").write_text(self._report.json(), encoding="utf-8")
            self._report.html(self._folder / "report.html")
        return found

    def kernels(self, direction: str, file: str, code: str) -> None:
        """Show where the generated code of one direction is, and the names of the kernels in it."""
        names = sorted(set(re.findall(r"\b(?:cpp|triton)_\w*fused_\w+", code)))
        text = "\n".join([file, *(f"  {name}" for name in names)]) + "\n"
        self._show(f"{next(self._number):02d}_kernels_{direction}.txt", lambda: text)

    def _show(self, name: str, text: Callable[[], str]) -> None:
        if self._folder:
            (self._folder / name).write_text(text(), encoding="utf-8")
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s\n%s", name, text())
        inductor.trace_artifact(f"bi_compile_{name.rpartition('.')[0]}", text)


def _new_folder(base: Path) -> Path:
    """A folder of the next free number below `base`."""
    for number in itertools.count():
        folder = base / f"{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")
