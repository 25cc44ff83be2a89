"""200 real sentences embedded with MiniLM, one by one and in batches: do they get the same bits?

    python examples/embeddings.py            # or: make demo
    python examples/embeddings.py --quick    # 40 sentences, three batch sizes

Four arms: stock eager PyTorch, the same under MKL_CBWR=AVX512,STRICT, stock Inductor, and bi_compile. Three
ways of padding. Writes a table to the terminal, out/embeddings.png and out/embeddings.json.
Exit status 1 when a bit of an embedding by bi_compile changes.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import MODES, Embed, Measured, Result, calls, measure
from minilm import load_embedder, tokenize
from plot import save_plot
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sentences import english_sentences
from strict_mkl import strict_mkl

ARMS = {
    "eager": "stock eager",
    "mkl": "stock eager, strict MKL",
    "inductor": "stock Inductor",
    "ours": "bi_compile",
}
BACKENDS = {"eager": None, "inductor": "inductor", "ours": "batch_invariant"}


def main() -> int:
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    # A machine's shapes are many here; stock Inductor shall not be moved to eager for it.
    torch._dynamo.config.recompile_limit = 64
    tokens = tokenize(english_sentences(args.sentences))

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(
        f"{len(tokens)} sentences of {min(map(len, tokens))} to {max(map(len, tokens))} tokens, "
        f"batches of {', '.join(map(str, args.batch_sizes))}; {machine()}"
    )
    with (
        _progress(console) as progress,
        strict_mkl(enabled="mkl" in args.arms) as strict,
        torch.inference_mode(),
    ):
        total = calls(len(args.arms), tokens, args.batch_sizes, list(MODES))
        task = progress.add_task("compiling", total=total)
        measured = measure(
            {arm: strict if arm == "mkl" else _embed_with(arm) for arm in args.arms},
            tokens,
            sizes=args.batch_sizes,
            modes=list(MODES),
            tick=_ticker(console, progress, task),
        )
    results = {mode: {arm: m.result for arm, m in by_arm.items()} for mode, by_arm in measured.items()}

    _write(args.out, results, tokens, args)
    console.print(_table(results, args.arms, len(tokens)))
    if "mkl" in args.arms and "Intel" not in processor():
        console.print("MKL's strict mode is an Intel feature; on this processor MKL may ignore the setting.")
    save_plot(args.out / "embeddings.png", results, ARMS, len(tokens), machine())
    console.print(f"plot: {args.out / 'embeddings.png'}   numbers: {args.out / 'embeddings.json'}")
    return _verdict(console, measured, results, len(tokens)) if "ours" in args.arms else 0


def _embed_with(arm: str) -> Embed:
    model = load_embedder()
    backend = BACKENDS[arm]
    return model if backend is None else torch.compile(model, backend=backend)


def _verdict(console: Console, measured: dict, results: dict[str, dict[str, Result]], count: int) -> int:
    """Also across modes: a sentence alone at its own length has the bits it has padded to 64."""
    alone: dict[str, Measured] = {mode: by_arm["ours"] for mode, by_arm in measured.items()}
    across = torch.zeros(count, dtype=torch.bool)
    for mode in MODES:
        other = alone[mode].alone.view(torch.int32)
        across |= (other != alone["longest"].alone.view(torch.int32)).any(1)
    changed = sum(results[mode]["ours"].changed for mode in MODES)
    padding = int(across.sum())
    good = changed == 0 and padding == 0
    console.print(
        f"bi_compile: {changed} of {len(MODES) * count} embeddings change with the batch, "
        f"{padding} of {count} with the padding: " + ("bit for bit the same" if good else "FAILED"),
        style="bold green" if good else "bold red",
    )
    return 0 if good else 1


def _table(results: dict[str, dict[str, Result]], arms: list[str], count: int) -> Table:
    table = Table(title=f"MiniLM, {count} sentences: alone against in a batch")
    table.add_column("padded", no_wrap=True)
    table.add_column("arm", no_wrap=True)
    # Short headings: the table shall fit a narrow terminal.
    for heading in ("embeddings\nchanged", "nearest\nchanged", "rankings\nchanged", "largest\ndifference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("ms each\nbatched", "x Inductor\nbatched", "x Inductor\nalone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mode, title in MODES.items():
        for arm in arms:
            r = results[mode][arm]
            clean = r.changed == 0
            table.add_row(
                title if arm == arms[0] else "",
                ARMS[arm],
                f"[{'green' if clean else 'red'}]{r.changed} of {count}[/]",
                str(r.neighbours),
                str(r.rankings),
                "0" if r.largest == 0 else f"{r.largest:.1e}",
                f"{1000 * r.seconds:.2f}",
                "" if r.ratio is None else f"{r.ratio:.2f}",
                "" if r.ratio_alone is None else f"{r.ratio_alone:.2f}",
            )
        table.add_section()
    return table


def _write(out: Path, results: dict, tokens: list[list[int]], args: argparse.Namespace) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "sentences": len(tokens),
        "batch_sizes": args.batch_sizes,
        "machine": machine(),
        "results": {
            mode: {arm: r.as_dict() for arm, r in by_arm.items()} for mode, by_arm in results.items()
        },
    }
    (out / "embeddings.json").write_text(json.dumps(content, indent=1) + "\n")


def _ticker(console: Console, progress: Progress, task: TaskID) -> Callable[[str, str], None]:
    """Moves the bar; where there is no terminal to draw one in, a line for each mode says how far we are."""
    seen: set[str] = set()

    def tick(mode: str, arm: str) -> None:
        progress.update(task, advance=1, description=f"{mode:<8} {arm:<8}")
        if mode not in seen and not console.is_terminal:
            console.print(f"embedding, padded {MODES[mode]}")
        seen.add(mode)

    return tick


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> str:
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} {'thread' if threads == 1 else 'threads'}, torch {torch.__version__}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 9, 64])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--quick", action="store_true", help="40 sentences in batches of 2, 7 and 16")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    if args.quick:
        args.sentences, args.batch_sizes = 40, [2, 7, 16]
    return args


if __name__ == "__main__":
    raise SystemExit(main())
