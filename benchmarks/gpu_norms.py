"""Norms, softmax and sums on a CUDA device against Inductor's kernels, in bf16.

`python benchmarks/gpu_norms.py [--quick]`: under 9 minutes; --quick takes one row length and a minute.
"""

import sys

import torch
import torch.nn.functional as F
from gpu_timing import compare, machine

QUICK = "--quick" in sys.argv
ROWS = (1, 8192) if QUICK else (1, 16, 64, 512, 8192)
LENGTHS = (4096,) if QUICK else (768, 4096, 8192)
bi = torch.ops.bi_compile


def cases(x: torch.Tensor, w: torch.Tensor) -> dict:
    n, h = x.shape[1:], torch.randn_like(x)
    return {
        "rms_norm": (lambda x: bi.rms_norm(x, n, w, 1e-6)[0], lambda x: F.rms_norm(x, n, w, 1e-6)),
        "layer_norm": (
            lambda x: bi.layer_norm(x, n, w, w, 1e-5)[0],
            lambda x: F.layer_norm(x, n, w, w, 1e-5),
        ),
        "residual": (
            lambda x: bi.added_rms_norm(x, h, n, w, 1e-6)[:2],
            lambda x: (y := x + h, F.rms_norm(y, n, w, 1e-6)),
        ),
        "softmax": (lambda x: bi.softmax(x, -1), lambda x: x.softmax(-1)),
        "sum": (lambda x: bi.sum(x, [1], False), lambda x: x.sum(1)),
        "column sum": (lambda x: bi.sum(x, [0], False), lambda x: x.sum(0)),
    }


@torch.inference_mode()
def main() -> None:
    import bi_compile.backend  # noqa: F401  (defines the ops)

    print(machine())
    print(f"{'op':12} {'rows':>6} {'n':>6} {'ours us':>9} {'Inductor us':>12} {'ratio':>6}")
    for n in LENGTHS:
        w = torch.randn(n, device="cuda", dtype=torch.bfloat16)
        for rows in ROWS:
            x = torch.randn(rows, n, device="cuda", dtype=torch.bfloat16)
            for name, (ours, stock) in cases(x, w).items():
                torch.compiler.reset()
                compiled = torch.compile(stock, dynamic=False)
                a, b, ratio = compare(lambda f=ours, x=x: f(x), lambda f=compiled, x=x: f(x))
                print(f"{name:12} {rows:6} {n:6} {a:9.1f} {b:12.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
