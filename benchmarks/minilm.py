"""MiniLM end to end: time and peak memory against stock Inductor, as ratios.

    python benchmarks/minilm.py                 # or: make bench
    python benchmarks/minilm.py --rounds 30 --threads 1

Both arms run in one process and take turns, so that a busy machine slows both alike. A cell is the median of
the rounds' ratios; below 1 means bi_compile is faster. Peak memory is that of a process of its own per arm
while it embeds a batch of 256, above what it holds before: importing and compiling have peaks of their own,
so the kernel's record is reset after a first call.
"""

import argparse
import json
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
from interleaved import processor, seconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from minilm import MAX_TOKENS, load_embedder, padded, tokenize
from sentences import english_sentences

BACKENDS = {"inductor": "inductor", "ours": "batch_invariant"}
BATCHES = (1, 8, 64)
PEAK_BATCH = 256


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

    print(f"MiniLM, {MAX_TOKENS} tokens, fp32; {processor()}; torch {torch.__version__}; {date.today()}")
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
        held = f"{peak['peak']:7.0f} MiB, {peak['before']:.0f} before it"
        print(f"batch {PEAK_BATCH}, peak memory of {arm:<9} {held}")
    ours, theirs = ((peaks[arm]["peak"] - peaks[arm]["before"]) for arm in ("ours", "inductor"))
    print(f"batch {PEAK_BATCH}, memory above that before it, ours/inductor {ours / theirs:.3f}")


def _compare(arms, inputs, rounds: int) -> tuple[float, float, float]:
    """Best seconds of either arm, and the median of the rounds' ratios."""
    times = seconds(arms, rounds, *inputs)
    ratios = [a / b for a, b in zip(times["ours"], times["inductor"], strict=True)]
    return min(times["inductor"]), min(times["ours"]), statistics.median(ratios)


def _inputs(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tokenize(english_sentences(size))
    return padded(tokens, MAX_TOKENS)


def _footprint(arm: str) -> dict[str, float]:
    inputs = _inputs(PEAK_BATCH)
    with torch.inference_mode():
        embed = torch.compile(load_embedder(), backend=BACKENDS[arm])
        for size in (1, 8):
            embed(*_inputs(size))
        before = _mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        embed(*inputs)
    return {"before": before, "peak": _mib("VmHWM")}


def _in_process(arm: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, __file__, "--worker", arm], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def _mib(field: str) -> float:
    """VmRSS is what the process holds, VmHWM the most it held since the record was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
