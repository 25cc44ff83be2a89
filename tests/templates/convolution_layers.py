"""Convolutions of every kind, small, for tests on any device."""

import torch

from tests.bits import order_sensitive

# name: x (one sample), w, stride, padding, dilation, transposed, output_padding, groups
LAYERS = {
    "3x3": ((20, 13, 9), (17, 20, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1),
    "3x3, small image": ((40, 7, 7), (30, 40, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1),
    "1x1": ((300, 5, 6), (33, 300, 1, 1), (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
    "patches": ((3, 16, 24), (30, 3, 8, 8), (8, 8), (0, 0), (1, 1), False, (0, 0), 1),
    "groups, strides and dilation": ((8, 13, 19), (12, 4, 3, 2), (2, 1), (1, 0), (1, 3), False, (0, 0), 2),
    "depthwise": ((9, 14, 17), (9, 1, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 9),
    "depthwise, stride": ((5, 15, 40), (10, 1, 5, 5), (2, 2), (2, 2), (1, 1), False, (0, 0), 5),
    "depthwise, 1d": ((6, 40), (12, 1, 31), (1,), (15,), (2,), False, (0,), 6),
    "1d": ((6, 37), (14, 3, 5), (3,), (4,), (2,), False, (0,), 2),
    "3d": ((3, 5, 6, 7), (4, 3, 3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), False, (0, 0, 0), 1),
    "transposed": ((12, 5, 7), (12, 9, 4, 4), (2, 2), (1, 1), (1, 1), True, (0, 0), 1),
    "transposed, groups": ((12, 5, 7), (12, 3, 3, 3), (2, 3), (1, 0), (2, 1), True, (1, 2), 2),
    "transposed, depthwise": ((6, 5, 7), (6, 1, 3, 3), (2, 2), (1, 1), (1, 1), True, (1, 1), 6),
}


def layer(name: str, samples: int, dtype: torch.dtype = torch.float32):
    """x, w, bias and the arguments after them."""
    sample, kernel, *arguments = LAYERS[name]
    generator = torch.Generator().manual_seed(len(name))
    outputs = kernel[1] * arguments[5] if arguments[3] else kernel[0]
    w, bias, x = (
        order_sensitive(*shape, dtype=dtype, generator=generator)
        for shape in (kernel, (outputs,), (samples, *sample))
    )
    return x, w, bias, arguments
