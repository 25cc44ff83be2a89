"""Prints one digest of the bits of convolutions for each dtype: run once for each instruction set."""

import hashlib

import torch

from tests.bits import as_integers, order_sensitive

# x, w, stride, padding, dilation, transposed, output_padding, groups
CALLS = [
    ((3, 5, 9, 11), (7, 5, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1),
    ((2, 70, 7, 7), (50, 70, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1),
    ((2, 8, 13, 10), (12, 4, 3, 2), (2, 1), (1, 0), (1, 2), False, (0, 0), 2),
    ((2, 8, 13, 33), (8, 1, 3, 3), (2, 2), (1, 1), (1, 1), False, (0, 0), 8),
    ((2, 600, 5, 7), (20, 600, 1, 1), (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
    ((2, 30, 5, 7), (30, 30, 1, 1), (2, 2), (0, 0), (1, 1), False, (0, 0), 1),
    ((2, 6, 37), (4, 3, 5), (3,), (2,), (2,), False, (0,), 2),
    ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), False, (0, 0, 0), 1),
    ((2, 6, 5, 7), (6, 2, 3, 3), (2, 2), (1, 1), (1, 1), True, (1, 1), 2),
    ((2, 6, 5, 7), (6, 4, 2, 3), (3, 2), (1, 1), (1, 2), True, (2, 0), 1),
    ((2, 6, 5, 7), (6, 1, 3, 3), (2, 2), (1, 1), (1, 1), True, (1, 1), 6),
    ((1, 4, 4, 3, 3), (4, 3, 3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), True, (1, 0, 1), 1),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def digest(dtype: torch.dtype) -> str:
    generator = torch.Generator().manual_seed(3)
    found = hashlib.sha256()
    for x_shape, w_shape, *arguments in CALLS:
        x = order_sensitive(*x_shape, dtype=dtype, generator=generator)
        w = order_sensitive(*w_shape, dtype=dtype, generator=generator)
        transposed, groups = arguments[3], arguments[5]
        bias = order_sensitive(
            w_shape[1] * groups if transposed else w_shape[0], dtype=dtype, generator=generator
        )
        for added in (None, bias):
            out = torch.ops.bi_compile.convolution(x, w, added, *arguments)
            found.update(as_integers(out).numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    import bi_compile.templates.convolution  # noqa: F401  (defines the op)

    for dtype in DTYPES:
        print(dtype, digest(dtype))


if __name__ == "__main__":
    main()
