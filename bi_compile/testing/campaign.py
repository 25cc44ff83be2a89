"""Random models one after the other, as long as one likes: counts, failures, and programs that show them.

    python -m bi_compile.testing.campaign --models 20000 --jobs 2 --folder out/campaign
    python -m bi_compile.testing.campaign --decoders 2000 --backend canonical

The same command goes on where it was stopped. A model is a function of the seed and its number (on one
machine: a step that stock PyTorch cannot run, or after which all samples agree, is left out). Models are
compiled together, some ten in a graph; with --backend canonical nothing is compiled. Decoders are checked one
by one, in pieces with a cache against whole prompts (`decoders.check_decoder`).
"""

import argparse
import functools
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from bi_compile.testing.checking import check_model
from bi_compile.testing.decoders import FAMILIES, Decoder, check_decoder
from bi_compile.testing.grammar import OPS
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.shrinking import Case, smallest
from bi_compile.testing.subjects import Outcome, refusal_of
from bi_compile.testing.telling import telling
from bi_compile.testing.together import Verdict, check_together

BLOCK = 40
"""Models that are drawn, and compiled in groups, at a time: one block has one kind of check."""
NOT_COMPILED = ("eager", "canonical")
_BLOCKS_OF_A_PROCESS = 15
"""Then it ends and another goes on: compiled code is never unloaded."""
_STOPPED = 128 + signal.SIGTERM
"""The exit status of what was told to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit status is 1 if any model failed, 143 if it was told to stop."""
    options = _parser().parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * options.minutes
    if not options.jobs:
        _work(options, 0, deadline)
    elif not _in_processes(options, deadline):
        return _STOPPED
    results = _Results(options).finished
    print(summary([results[number] for number in sorted(results) if number < _count(options)]))
    return int(any(result["what"] == "failed" for result in results.values()))


def _in_processes(options: argparse.Namespace, deadline: float) -> bool:
    """Run all jobs; False if the campaign was told to stop."""
    context = get_context("spawn")
    jobs: dict[int, Any] = dict.fromkeys(range(options.jobs))
    told_to_stop: list[int] = []
    # No exception: one that arises while an object is deleted is ignored.
    before = signal.signal(signal.SIGTERM, lambda number, _: told_to_stop.append(number))
    try:
        while jobs and not told_to_stop:
            for job, process in list(jobs.items()):
                if process is not None and process.is_alive():
                    continue
                if time.time() > deadline or not any(_blocks(options, job)):
                    del jobs[job]
                    continue
                # A model that ends its process is known by its number; the process begins again.
                jobs[job] = context.Process(target=_process, args=(options, job, deadline))
                jobs[job].start()
            time.sleep(0.2)
    finally:
        for process in filter(None, jobs.values()):
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    return not told_to_stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bi_compile.testing.campaign", description=__doc__)
    parser.add_argument("--models", type=int, default=100, help="number i is the same model in a longer run")
    parser.add_argument("--decoders", type=int, default=0, help="so many decoders instead of models")
    parser.add_argument("--steps", type=int, default=10, help="ops drawn for a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--backend", default="batch_invariant", help='of torch.compile, "eager" or "canonical"'
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("out/campaign"), help="results and found failures"
    )
    parser.add_argument("--shrink", type=int, default=60, help="tries to make a failing model smaller")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0 for this one")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no block of 40 after so many")
    return parser


def _count(options: argparse.Namespace) -> int:
    return options.decoders or options.models


def settings_of(number: int) -> dict[str, bool | None]:
    """Every fourth block is checked with gradients, every fifth with a graph of its own for one sample, and
    every third with symbolic sizes of features."""
    block = number // BLOCK
    return {
        "gradients": block % 4 == 3,
        "alone": block % 5 == 4,
        "dynamic": True if block % 3 == 1 else None,
    }


def model_of(options: argparse.Namespace, number: int) -> RandomModel:
    """The model of that number: the first drawn that has a step."""
    rng = random.Random(f"{options.seed} {number}")
    while True:
        model = telling(RandomModel.drawn(rng, steps=options.steps))
        if model.steps:
            return model


def decoder_of(options: argparse.Namespace, number: int) -> Decoder:
    """The decoder of that number."""
    return Decoder.drawn(random.Random(f"decoders {options.seed} {number}"))


class _Results:
    """The file of results: what was begun, and what became of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        what = "decoders" if options.decoders else str(options.steps)
        self.path = options.folder / f"{options.backend}-{options.seed}-{what}.jsonl"
        lines = (
            [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        )
        self.finished = {line["number"]: line for line in lines if "what" in line}
        begun = Counter(line["alone"] for line in lines if "alone" in line)
        self.suspects = {n for line in lines for n in line.get("begun", ()) if n not in self.finished}
        for number in self.suspects:
            if begun[number] > 1:  # Once may have been the user's interruption.
                why = {"ops": [], "why": "the process ended", "script": "", "seconds": 0.0}
                self.finished[number] = {"number": number, "what": "failed", **why}
        self.suspects -= set(self.finished)

    def note(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:  # one short write: processes do not mix their lines
            file.write(json.dumps(line) + "\n")


def _blocks(options: argparse.Namespace, job: int) -> Iterator[list[int]]:
    """The numbers that are left to one job, block by block."""
    done = _Results(options).finished
    count = _count(options)
    for block in range(job, (count + BLOCK - 1) // BLOCK, options.jobs or 1):
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, count))
        if left := [number for number in numbers if number not in done]:
            yield left


def _process(options: argparse.Namespace, job: int, deadline: float) -> None:
    """Some blocks of one job, compiled one at a time in a folder of its own that is deleted at the end."""
    cache = options.folder.resolve() / f"inductor-{job}"

    def stop(*_: Any) -> None:
        shutil.rmtree(cache, ignore_errors=True)
        os._exit(_STOPPED)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a whole group: the first process passes it on
    torch.set_num_threads(1)
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    try:
        _work(options, job, deadline, _BLOCKS_OF_A_PROCESS)
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _work(options: argparse.Namespace, job: int, deadline: float, blocks: int | None = None) -> None:
    logging.getLogger("torch").setLevel(logging.ERROR)
    for numbers in itertools.islice(_blocks(options, job), blocks):
        parent = parent_process()
        if time.time() > deadline or (parent is not None and not parent.is_alive()):
            return
        results = _Results(options)
        for number in sorted(results.suspects.intersection(numbers)):
            results.note({"alone": number})
            _check(options, results, [number])
        if left := [number for number in numbers if number not in results.suspects]:
            results.note({"begun": left})
            _check(options, results, left)
        torch.compiler.reset()


def _check(options: argparse.Namespace, results: _Results, numbers: Sequence[int]) -> None:
    """Check models or decoders of one block, and note what became of each."""
    if options.decoders:
        return _check_decoders(options, results, numbers)
    start, how = time.process_time(), {"backend": options.backend, **settings_of(numbers[0])}
    models = [model_of(options, number) for number in numbers]
    verdicts = (
        [_verdict(model, how) for model in models]
        if options.backend in NOT_COMPILED
        else (check_together(models, **how))
    )
    for number, model, verdict in zip(numbers, models, verdicts, strict=True):
        result: dict[str, Any] = {"number": number, "ops": [name for name, _ in model.steps]}
        if isinstance(verdict, Exception):
            verdict_of = functools.partial(_verdict, how=how)
            result |= {"what": "failed", **_found(options, str(number), model, verdict, verdict_of)}
            print(f"model {number} failed: {result['why']}\n  {result['script']}", flush=True)
        else:
            result |= {"what": verdict.what, "why": verdict.why}
        results.note(result | {"seconds": round((time.process_time() - start) / len(numbers), 2)})


def _check_decoders(options: argparse.Namespace, results: _Results, numbers: Sequence[int]) -> None:
    for number in numbers:
        start, case = time.process_time(), decoder_of(options, number)
        verdict = _decoder_verdict(case, options.backend)
        result: dict[str, Any] = {"number": number, "ops": [case.family]}
        if isinstance(verdict, Exception):
            verdict_of = functools.partial(_decoder_verdict, backend=options.backend)
            result |= {"what": "failed", **_found(options, f"decoder_{number}", case, verdict, verdict_of)}
            print(f"decoder {number} failed: {result['why']}\n  {result['script']}", flush=True)
        else:
            result |= {"what": verdict.what, "why": verdict.why}
        results.note(result | {"seconds": round(time.process_time() - start, 2)})


def _decoder_verdict(case: Decoder, backend: str) -> Verdict:
    try:
        check_decoder(case, backend)
    except Exception as error:
        return refusal_of(error) or error
    return Outcome("same")


def _verdict(model: RandomModel, how: dict[str, Any]) -> Verdict:
    try:
        return check_model(model, **how)
    except Exception as error:
        return error


def _found(
    options: argparse.Namespace,
    name: str,
    case: Case,
    error: Exception,
    verdict: Callable[[Case], Verdict],
) -> dict[str, str]:
    """The failure of a model or a decoder made small, its program written to a file."""

    def fails(case: Case) -> bool:
        return type(verdict(case)) is type(error)

    again = verdict(smallest(case, fails, tries=options.shrink))
    error = again if isinstance(again, Exception) else error
    script = options.folder / f"test_{options.backend}_{options.seed}_{name}.py"
    script.write_text("\n".join(getattr(error, "__notes__", [])))
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return {"why": f"{type(error).__name__}: {first}", "script": str(script)}


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Counts by outcome, refused ops, ops or families that were checked, and failures."""
    counts = Counter(result["what"] for result in results)
    used = Counter(name for result in results for name in set(result["ops"]))
    decoders = bool(used) and set(used) <= set(FAMILIES)
    cases, parts, known = ("decoders", "families", FAMILIES) if decoders else ("models", "ops", OPS)
    lines = [f"{len(results)} {cases}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common())]
    for what in ("refused", "invalid"):
        reasons = Counter(result["why"] for result in results if result["what"] == what)
        lines += [f"  {n} {what}: {why}" for why, n in reasons.most_common()]
    rarest = min(used.values(), default=0)
    lines.append(f"  {len(used)} of {len(known)} {parts}, the rarest in {rarest} {cases}")
    lines += [f"  failed: {r['why']} ({r['script']})" for r in results if r["what"] == "failed"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
