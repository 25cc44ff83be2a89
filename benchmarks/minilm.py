"""MiniLM end to end: time and peak memory against stock Inductor, as ratios.

    python benchmarks/minilm.py                 # or: make bench
    python benchmarks/minilm.py --rounds 30 --threads 1

Both arms run in one process and take turns, so that a busy machine slows both alike. A cell is the median of
the rounds' ratios; below 1 means bi_compile is faster. Peak memory is that of a process of its own per arm
which compiles, then embeds batches of 1, 8 and 64.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from minilm import MAX_TOKENS, load_embedder, padded, tokenize
from sentences import english_sentences

BACKENDS = {"inductor": "inductor", "ours": "batch_invariant"}
BATCHES = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", choices=BACKENDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(_footprint(args.worker)))
        return

    print(f"MiniLM, {MAX_TOKENS} tokens, fp32; {_processor()}; torch {torch.__version__}; {date.today()}")
    inputs = {size: _inputs(size) for size in BATCHES}
    with torch.inference_mode():
        arms = {arm: torch.compile(load_embedder(), backend=backend) for arm, backend in BACKENDS.items()}
        print("threads  batch  inductor ms   ours ms  ours/inductor")
        for threads in args.threads:
            torch.set_num_threads(threads)
            for size in BATCHES:
                theirs, ours, ratio = _compare(arms, inputs[size], args.rounds)
                print(f"{threads:7d}  {size:5d}  {theirs * 1e3:11.2f}  {ours * 1e3:8.2f}  {ratio:13.3f}")

    peaks = {arm: _in_process(arm) for arm in BACKENDS}
    for arm, peak in peaks.items():
        print(f"peak memory {arm:<9} {peak['peak']:7.0f} MiB, {peak['before']:.0f} before the first batch")
    print(f"peak memory ratio ours/inductor {peaks['ours']['peak'] / peaks['inductor']['peak']:.3f}")


def _compare(arms, inputs, rounds: int) -> tuple[float, float, float]:
    """Best seconds of either arm, and the median of the rounds' ratios."""
    seconds = {arm: [] for arm in arms}
    for embed in arms.values():
        for _ in range(3):
            embed(*inputs)
    for turn in range(rounds):
        for arm in list(arms) if turn % 2 else list(arms)[::-1]:
            start = time.perf_counter()
            arms[arm](*inputs)
            seconds[arm].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["inductor"], strict=True)]
    return min(seconds["inductor"]), min(seconds["ours"]), statistics.median(ratios)


def _inputs(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tokenize(english_sentences(size))
    return padded(tokens, MAX_TOKENS)


def _footprint(arm: str) -> dict[str, float]:
    model = load_embedder()
    before = _peak_mib()
    with torch.inference_mode():
        embed = torch.compile(model, backend=BACKENDS[arm])
        for size in BATCHES:
            embed(*_inputs(size))
    return {"before": before, "peak": _peak_mib()}


def _in_process(arm: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, __file__, "--worker", arm], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
