"""What isolation costs: an op run sample by sample in a compiled graph against a loop over the samples.

    python benchmarks/isolation.py [--threads 1]

Both arms take turns in one process. A ratio below 1 means that the isolated op is faster than the stock op
called once for each sample; the last column compares with the stock op on the whole batch.
"""

import argparse
import statistics
from datetime import date

import torch
from interleaved import seconds

BATCH = 32
OPS = {
    "fft of 4096": (torch.fft.rfft, (4096,)),
    "fft of 128 x 128": (torch.fft.fft2, (128, 128)),
    "fft of 128 x 128 complex": (torch.fft.fft2, (128, 128)),
    "inverse of 64 x 64": (torch.linalg.inv, (64, 64)),
    "singular values of 64 x 64": (torch.linalg.svdvals, (64, 64)),
    "exponential of 64 x 64": (torch.linalg.matrix_exp, (64, 64)),
    "digamma of 4096": (torch.digamma, (4096,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"batch {BATCH}, fp32, {args.threads} thread(s), torch {torch.__version__}, {date.today()}")
    print(f"{'op':<28} {'alone ms':>9} {'isolated ms':>12} {'isolated/alone':>15} {'isolated/stock':>15}")
    with torch.inference_mode():
        for name, (op, shape) in OPS.items():
            x = torch.randn(BATCH, *shape) + (8 * torch.eye(shape[0]) if len(shape) == 2 else 3)
            x = x.to(torch.complex64) if name.endswith("complex") else x
            compiled = torch.compile(op, backend="batch_invariant")
            arms = {
                "alone": lambda op=op, x=x: [op(x[i : i + 1]) for i in range(BATCH)],
                "isolated": lambda compiled=compiled, x=x: compiled(x),
                "stock": lambda op=op, x=x: op(x),
            }
            alone, isolated, stock = map(statistics.median, seconds(arms, args.rounds).values())
            print(
                f"{name:<28} {alone * 1e3:9.3f} {isolated * 1e3:12.3f} "
                f"{isolated / alone:15.2f} {isolated / stock:15.2f}"
            )


if __name__ == "__main__":
    main()
