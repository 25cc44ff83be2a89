"""What a report costs: `bi_compile.explain` of a model of about 2,000 ops, and its HTML page.

    python benchmarks/report.py [--layers 27]

Prints the whole time of `explain`, how much of it is spent after tracing (the batch followed, ops checked and
recorded), the time and size of the HTML page, and, where Chromium is installed, how long the page takes to be
loaded and laid out.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path
from unittest import mock

import torch
from interleaved import processor
from torch import nn

import bi_compile
from bi_compile import backend

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_LOADED = """
<script>
addEventListener("load", () => {
  document.body.getBoundingClientRect();
  document.title = "loaded and laid out after " + Math.round(performance.now()) + " ms";
});
</script>
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=27)
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers = nn.ModuleList(
        nn.TransformerDecoderLayer(32, 4, 64, batch_first=True) for _ in range(args.layers)
    )
    model = Stack(layers).eval().requires_grad_(False)
    spent = Stopwatch(backend._verify)
    begin = time.perf_counter()
    with mock.patch.object(backend, "_verify", spent):
        report = bi_compile.explain(model)(torch.randn(3, 7, 32))
    whole = time.perf_counter() - begin
    print(f"{processor()}, 1 thread, torch {torch.__version__}, {date.today()}")
    print(f"explain of {len(report.verdicts)} ops in {len(report.graphs)} graph(s): {whole:.1f} s")
    print(f"  of which after tracing: {spent.seconds:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        page = report.html(Path(folder) / "report.html")
        print(f"HTML page: {time.perf_counter() - begin:.2f} s, {page.stat().st_size / 1e6:.2f} MB")
        print(f"  in Chromium: {opened(page, Path(folder)) if BROWSER else 'not installed'}")


class Stack(nn.Module):
    """Decoder layers that all attend to the input."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for layer in self.layers:
            out = layer(out, x)
        return out


class Stopwatch:
    """A function, and the seconds spent in it."""

    def __init__(self, function) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args, **kwargs):
        begin = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - begin


def opened(page: Path, folder: Path) -> str:
    page.write_text(page.read_text(encoding="utf-8") + _LOADED, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --dump-dom"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<title>(loaded and laid out after .*?)</title>", run.stdout)
    return found[1] if found else f"no answer: {run.stderr.strip()[-200:]}"


if __name__ == "__main__":
    main()
