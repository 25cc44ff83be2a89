"""What isolation costs: an op run sample by sample against a loop over the samples.

    python benchmarks/isolation.py [--threads 1]

All arms take turns in one process, and the best of each counts. A ratio below 1 means that the op run sample
by sample is faster than the stock op called once for each sample: by itself, and as the only op of a compiled
function, where a call of such a function counts too. The last column compares with the stock op on the whole
batch.
"""

import argparse
from datetime import date

import torch
from interleaved import processor, seconds

import bi_compile  # noqa: F401  (registers the backend)
from bi_compile.templates.isolation.contract import encode

BATCH = 32
aten = torch.ops.aten
COMPLEX = {"t": 0, "as": torch.complex64}
OPS = {
    "fft of 4096": (torch.fft.rfft, (4096,), aten._fft_r2c.default, ({"t": 0}, [1], 0, True)),
    "fft of 128 x 128": (torch.fft.fft2, (128, 128), aten._fft_c2c.default, (COMPLEX, [1, 2], 0, True)),
    "fft of 128 x 128 complex": (
        torch.fft.fft2,
        (128, 128),
        aten._fft_c2c.default,
        ({"t": 0}, [1, 2], 0, True),
    ),
    "inverse of 64 x 64": (torch.linalg.inv, (64, 64), aten.linalg_inv_ex.default, ({"t": 0},)),
    "singular values of 64 x 64": (
        torch.linalg.svdvals,
        (64, 64),
        aten._linalg_svd.default,
        ({"t": 0}, False, False),
    ),
    "exponential of 64 x 64": (
        torch.linalg.matrix_exp,
        (64, 64),
        aten.linalg_matrix_exp.default,
        ({"t": 0},),
    ),
    "digamma of 4096": (torch.digamma, (4096,), aten.digamma.default, ({"t": 0},)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=41)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    isolated = torch.ops.bi_compile.isolated.default
    print(
        f"{processor()}, batch {BATCH}, fp32, {args.threads} thread(s), "
        f"torch {torch.__version__}, {date.today()}"
    )
    print(f"{'op':<28} {'alone ms':>9} {'isolated/alone':>15} {'compiled/alone':>15} {'compiled/stock':>15}")
    with torch.inference_mode():
        for name, (function, shape, op, arguments) in OPS.items():
            x = torch.randn(BATCH, *shape) + (8 * torch.eye(shape[0]) if len(shape) == 2 else 3)
            x = x.to(torch.complex64) if name.endswith("complex") else x
            call, joined = encode(op, list(arguments), {}), [0] * len(op._schema.returns)
            compiled = torch.compile(function, backend="batch_invariant")
            arms = {
                "alone": lambda f=function, x=x: [f(x[i : i + 1]) for i in range(BATCH)],
                "isolated": lambda c=call, j=joined, x=x: isolated([x], [], c, [0], [1], j),
                "compiled": lambda f=compiled, x=x: f(x),
                "stock": lambda f=function, x=x: f(x),
            }
            best = {arm: min(times) for arm, times in seconds(arms, args.rounds).items()}
            ratios = [
                best["isolated"] / best["alone"],
                best["compiled"] / best["alone"],
                best["compiled"] / best["stock"],
            ]
            print(f"{name:<28} {best['alone'] * 1e3:9.3f} " + " ".join(f"{ratio:15.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
