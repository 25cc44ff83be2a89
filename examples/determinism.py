"""One prompt completed 1,000 times at temperature 0 while other requests come and go: how many completions?

    python examples/determinism.py            # or: make experiment
    python examples/determinism.py --quick    # 60 completions of 48 tokens

A small decoder (examples/decoder.py) is trained on Python's own documentation strings, once; then a server
with continuous batching (examples/serving.py) completes one prompt again and again among other requests, with
random batch sizes, arrivals and chunks of prefill. Three arms: stock eager PyTorch, stock Inductor and
bi_compile. Writes a table to the terminal, out/determinism.png and out/determinism.json.

Exit status 1 when bi_compile gives more than one completion, or logits that are not, bit for bit, those of
one forward of the finished text.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from decoder import Decoder, Sizes, decode, documentation, encode, load_or_train
from embeddings import machine
from plot_determinism import save_plot
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from serving import Request, Server

ARMS = {"eager": "stock eager", "inductor": "stock Inductor", "ours": "bi_compile"}
# Inductor rounds where eager PyTorch does: else what Linear rounds stays fp32 from one product to the next.
ROUNDS = {"emulate_precision_casts": True}
COMPILED = {"inductor": {"backend": "inductor", "options": ROUNDS}, "ours": {"backend": "batch_invariant"}}
OTHERS = "Create a file object. Raise ValueError if the argument is not a string, else return its items."
SEED = 42
Forward = Callable[..., torch.Tensor]
"""A model, compiled or as it is."""
CANDIDATES, CLOSEST, COPIES, PROMPT_LENGTH = 2048, 64, 12, 32


@dataclass
class Result:
    """Of one arm.

    completions: text -> how often it came. first_difference: the earliest token at which two of them differ.
    rows: of logits that were watched, one a token. logits_changed: how many of these differ from those of the
        first request with the same text. unlike_forward: how many from one forward of the finished text.
    """

    completions: Counter[str] = field(default_factory=Counter)
    first_difference: int | None = None
    logits_changed: int = 0
    unlike_forward: int = 0
    rows: int = 0
    tokens_per_second: float = 0.0
    batch_sizes: dict[int, int] = field(default_factory=dict)


def main() -> int:
    args = _arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    console = Console(width=None if sys.stdout.isatty() else 120)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        sizes = Sizes()
        training = progress.add_task("training", total=sizes.steps)
        model = load_or_train(args.out, sizes, lambda step, loss: progress.update(training, completed=step))
        progress.update(training, completed=sizes.steps)
        model = model.to(getattr(torch, args.dtype))
        forwards = {
            arm: torch.compile(model, dynamic=True, **COMPILED[arm]) if arm in COMPILED else model
            for arm in args.arms
        }
        stock = [forwards[arm] for arm in args.arms if arm != "ours"]
        searching = progress.add_task("finding a prompt", total=len(stock) * CLOSEST * COPIES)
        prompt = sensitive_prompt(model, stock, args.tokens, args.slots, lambda: progress.advance(searching))
        results = {}
        for arm in args.arms:
            for temperature in args.temperatures:
                task = progress.add_task(f"{ARMS[arm]}, temperature {temperature:g}", total=args.completions)
                results[arm, temperature] = measure(
                    model,
                    forwards[arm],
                    prompt,
                    temperature,
                    completions=args.completions,
                    tokens=args.tokens,
                    slots=args.slots,
                    tick=lambda task=task: progress.advance(task),
                )
    console.print(_table(results, args))
    for (arm, temperature), result in results.items():
        if arm == "ours":
            console.print(f"temperature {temperature:g}: {decode(prompt) + next(iter(result.completions))!r}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_plot(args.out / "determinism.png", results, ARMS, args.completions, f"{machine()}, {args.dtype}")
    _write(args.out / "determinism.json", results, args)
    console.print(f"plot: {args.out / 'determinism.png'}   numbers: {args.out / 'determinism.json'}")
    ours = [r for (arm, _), r in results.items() if arm == "ours"]
    return int(any(len(r.completions) != 1 or r.unlike_forward or r.logits_changed for r in ours))


@torch.no_grad()
def sensitive_prompt(
    model: Decoder,
    forwards: Sequence[Forward],
    tokens: int,
    slots: int,
    tick: Callable[[], None] = lambda: None,
) -> list[int]:
    """A beginning of a documentation string that stock PyTorch completes otherwise from one load to another.

    forwards: the arms of stock PyTorch. Of CANDIDATES beginnings the CLOSEST, by the closest call between two
    tokens, are completed COPIES times each by every arm's server; the one is taken whose completions differ
    in most arms, and most often. A model of this size is sure of most characters, a large one is unsure in
    every long text.
    """
    paragraphs = [p for p in documentation().split("\n\n") if len(p) > PROMPT_LENGTH]
    chosen = random.Random(0).sample(paragraphs, CANDIDATES)
    prompts = torch.tensor([encode(p[:PROMPT_LENGTH]) for p in chosen])
    prompts = prompts[_closest_calls(model, prompts, tokens).argsort()[:CLOSEST]].tolist()
    others = [0] * CLOSEST
    arms = [0] * CLOSEST
    for forward in forwards:
        requests = [[Request(prompt, tokens) for _ in range(COPIES)] for prompt in prompts]
        mixed = [request for same in requests for request in same]
        random.Random(0).shuffle(mixed)
        server = Server(model, forward, slots=slots, regime=tokens, temperature=0, draw=random.Random(0))
        server.run(mixed, lambda request: tick())
        for i, same in enumerate(requests):
            counts = Counter(decode(request.tokens) for request in same)
            others[i] += COPIES - max(counts.values())
            arms[i] += len(counts) > 1
    return prompts[max(range(CLOSEST), key=lambda i: (arms[i], others[i]))]


def _closest_calls(model: Decoder, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Of each prompt's greedy completion the least margin between the best two tokens [rows]."""
    cache = model.empty_cache(len(prompts))
    logits = model(prompts, torch.arange(PROMPT_LENGTH).expand_as(prompts), cache)[:, -1]
    margins = torch.full((len(prompts),), torch.inf)
    for at in range(PROMPT_LENGTH, PROMPT_LENGTH + tokens):
        best = logits.topk(2)
        margins = torch.minimum(margins, best.values[:, 0] - best.values[:, 1])
        logits = model(best.indices[:, :1], torch.full((len(prompts), 1), at), cache)[:, -1]
    return margins


@torch.no_grad()
def measure(
    model: Decoder,
    forward: Forward,
    prompt: list[int],
    temperature: float,
    *,
    completions: int,
    tokens: int,
    slots: int,
    tick: Callable[[], None] = lambda: None,
) -> Result:
    """Completes the prompt `completions` times; as many other requests, of any length, run beside it."""
    requests = _requests(prompt, completions, tokens)
    warm_up = Server(model, forward, slots=slots, regime=8, temperature=temperature, draw=random.Random(0))
    warm_up.run(_requests(prompt, 12, 8), lambda request: None)
    server = Server(
        model, forward, slots=slots, regime=tokens, temperature=temperature, draw=random.Random(1)
    )
    begin = time.perf_counter()
    server.run(requests, lambda request: tick() if request.watched else None)
    seconds = time.perf_counter() - begin
    watched = [r for r in requests if r.watched]
    result = Result(
        completions=Counter(decode(r.tokens) for r in watched),
        tokens_per_second=sum(len(r.tokens) for r in requests) / seconds,
        batch_sizes=dict(sorted(server.calls.items())),
    )
    columns = zip(*(r.tokens for r in watched), strict=True)
    result.first_difference = next((i for i, column in enumerate(columns) if len(set(column)) > 1), None)
    _compare_logits(result, watched, forward)
    return result


def _compare_logits(result: Result, watched: list[Request], forward: Forward) -> None:
    """Each watched text's logits against those of the first request with it, and of one forward of it all."""
    first: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for request in watched:
        text, rows = decode(request.tokens), torch.stack(request.logits)
        if text not in first:
            ids = torch.tensor([request.prompt + request.tokens])
            first[text] = rows, forward(ids)[0, len(request.prompt) - 1 : -1]
        result.logits_changed += int((rows != first[text][0]).any(-1).sum())
        result.unlike_forward += int((rows != first[text][1]).any(-1).sum())
        result.rows += len(rows)


def _requests(prompt: list[int], completions: int, tokens: int) -> list[Request]:
    draw = random.Random(0)
    watched = [Request(prompt, tokens, seed=SEED, watched=True) for _ in range(completions)]
    others = []
    for i in range(completions):
        begin = draw.randrange(len(OTHERS) - 8)
        prompt = encode(OTHERS[begin : begin + draw.randint(1, 60)])
        others.append(Request(prompt, draw.randint(1, tokens // 2), seed=i))
    requests = watched + others
    draw.shuffle(requests)
    return requests


def _table(results: dict[tuple[str, float], Result], args: argparse.Namespace) -> Table:
    table = Table(
        title=f"{args.completions} completions of one prompt, {args.tokens} tokens each, {args.dtype}"
    )
    table.add_column("temperature", justify="right")
    table.add_column("arm", no_wrap=True)
    for heading in (
        "distinct\ncompletions",
        "first\ndifference",
        "logits unlike\nthe first's",
        "logits unlike\na full forward",
        "tokens/s",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for temperature in args.temperatures:
        for arm in args.arms:
            r = results[arm, temperature]
            table.add_row(
                f"{temperature:g}",
                ARMS[arm],
                f"[{'green' if len(r.completions) == 1 else 'red'}]{len(r.completions)}[/]",
                "none" if r.first_difference is None else f"token {r.first_difference}",
                f"{r.logits_changed} of {r.rows}",
                f"{r.unlike_forward} of {r.rows}",
                f"{r.tokens_per_second:.0f}",
            )
        table.add_section()
    return table


def _write(path: Path, results: dict[tuple[str, float], Result], args: argparse.Namespace) -> None:
    found = [
        {
            "arm": arm,
            "temperature": temperature,
            "distinct": len(r.completions),
            "counts": sorted(r.completions.values(), reverse=True),
            "first_difference": r.first_difference,
            "logits_changed": r.logits_changed,
            "unlike_forward": r.unlike_forward,
            "rows": r.rows,
            "tokens_per_second": r.tokens_per_second,
            "batch_sizes": r.batch_sizes,
        }
        for (arm, temperature), r in results.items()
    ]
    settings = {
        "completions": args.completions,
        "tokens": args.tokens,
        "slots": args.slots,
        "dtype": args.dtype,
    }
    path.write_text(json.dumps({"machine": machine(), **settings, "results": found}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--slots", type=int, default=24, help="requests that run together at most")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.8])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float16")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch chooses")
    parser.add_argument("--quick", action="store_true", help="60 completions of 48 tokens")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    if args.quick:
        args.completions, args.tokens = 60, 48
    return args


if __name__ == "__main__":
    raise SystemExit(main())
