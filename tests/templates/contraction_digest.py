"""Prints one digest of the bits of contractions for each dtype: run once for each instruction set."""

import hashlib
from typing import Any

import torch

from tests.bits import as_integers, order_sensitive

SHAPES = [(1, 1, 1), (1, 300, 50), (3, 300, 5), (13, 1000, 70), (40, 257, 33), (70, 800, 3), (2, 0, 3)]
SCALES = [1.0, 2.0**-66]  # the second makes products subnormal
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def digest(dtype: torch.dtype, ops: Any = torch.ops.bi_compile) -> str:
    """ops: a namespace of `mm`, `linear` and `addmm`."""
    generator = torch.Generator().manual_seed(3)
    found = hashlib.sha256()
    for m, k, n in SHAPES:
        for scale in SCALES:
            a, b, w, bias = (
                order_sensitive(*shape, dtype=dtype, generator=generator) * scale
                for shape in ((m, k), (k, n), (n, k), (n,))
            )
            for out in (ops.mm(a, b), ops.linear(a, w, bias), ops.addmm(bias, a, b, beta=0.7, alpha=-1.3)):
                found.update(as_integers(out).numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    import bi_compile.templates.contraction  # noqa: F401  (defines the ops)

    for dtype in DTYPES:
        print(dtype, digest(dtype))


if __name__ == "__main__":
    main()
