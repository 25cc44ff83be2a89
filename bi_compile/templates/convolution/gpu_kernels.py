"""Convolutions in Triton: matrix products whose second matrix is gathered from the input as it is needed.

The tree is that of `templates/contraction/gpu_kernels.py`, the product of the weights [outputs, K] and the
windows [K, positions], K counting (input channel of the group, tap): chunks of K, each one chain from +0,
added in index order. Tiles, warps and stages are free, but for fp32, which has one block of K.

Rows and columns of a tile that are not there are those of its last one once more, and not stored; beyond K
there are zeros.
"""

import triton
import triton.language as tl


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """total + a x b; in fp64 for one k, a fused multiply-add."""
    if PRECISION == "fma":
        a = tl.broadcast_to(a, total.shape)
        return tl.fma(a, tl.broadcast_to(b, total.shape), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _chain(
    w, x, weights, windows, begin, end, size_0, size_1, size_2, total,
    TAPS: tl.constexpr, DILATION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total [outputs, positions] after k = begin .. end-1.

    weights [outputs], windows [positions]: where the weights of an output lie in w, and a window begins in x.
    """
    for start in range(begin, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tap_2 = k % TAPS[2] * DILATION[2]
        tap_1 = k // TAPS[2] % TAPS[1] * DILATION[1]
        tap_0 = k // (TAPS[1] * TAPS[2]) % TAPS[0] * DILATION[0]
        channel = k // (TAPS[0] * TAPS[1] * TAPS[2])
        if WIDE:
            channel = channel.to(tl.int64)
        element = ((channel * size_0 + tap_0) * size_1 + tap_1) * size_2 + tap_2
        a_at = w + weights[:, None] + k[None, :]
        b_at = x + (windows[None, :] + element[:, None])
        if EVEN_K:
            a = tl.load(a_at)
            b = tl.load(b_at)
        else:
            a = tl.load(a_at, mask=(k < end)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k < end)[:, None], other=0.0)
        total = _product(a, b, total, PRECISION)
    return total


@triton.jit(do_not_specialize=["samples"])
def correlate(
    x, w, bias, out, samples, groups, inputs, outputs, K, size_0, size_1, size_2, grid_0, grid_1, grid_2,
    first_0, first_1, first_2, out_first, out_0, out_1, out_2, out_volume,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKED: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_AT: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of outputs and positions of one group, three spatial dimensions.

    x: contiguous [samples, groups * inputs, size_0, size_1, size_2], padding included; w: contiguous [groups,
    outputs, K]. The output at position j of a dimension of grid_0, grid_1 or grid_2 positions takes in the
    elements j * STRIDE + first + tap * DILATION, tap = 0 .. TAPS-1. It is written to
    out_first + j_0 * out_0 + j_1 * out_1 + j_2 * out_2 of the out_volume elements of its channel.
    CHUNKED: K is longer than CHUNK. WIDE: the input of a tile has 2^31 elements or more.
    """
    tiles = tl.cdiv(outputs, BLOCK_OUT)
    index = tl.program_id(0)
    group = (index // tiles % groups).to(tl.int64)
    output = index % tiles * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    positions = grid_0 * grid_1 * grid_2
    # The first row of the tile is counted in 64 bits, the others from its sample.
    begin = (index // tiles // groups).to(tl.int64) * BLOCK_AT
    first_sample = begin // positions
    at = (begin % positions).to(tl.int32) + tl.arange(0, BLOCK_AT)
    left = (samples - first_sample).to(tl.int32)
    there = at // positions < left
    sample = tl.minimum(at // positions, left - 1)
    at = at % positions
    j_2 = at % grid_2
    j_1 = at // grid_2 % grid_1
    j_0 = at // (grid_1 * grid_2)
    channels = groups * inputs
    x += (first_sample * channels + group * inputs) * size_0 * size_1 * size_2
    if WIDE:
        sample = sample.to(tl.int64)
    window = (sample * channels * size_0 + j_0 * STRIDE[0] + first_0) * size_1 + j_1 * STRIDE[1] + first_1
    window = window * size_2 + j_2 * STRIDE[2] + first_2
    channel = group * outputs + tl.minimum(output, outputs - 1)
    dtype: tl.constexpr = tl.float64 if PRECISION == "fma" else tl.float32
    total = tl.zeros((BLOCK_OUT, BLOCK_AT), dtype)
    if CHUNKED:
        for chunk in range(0, K, CHUNK):
            total += _chain(
                w, x, channel * K, window, chunk, tl.minimum(K, chunk + CHUNK), size_0, size_1, size_2,
                tl.zeros((BLOCK_OUT, BLOCK_AT), dtype),
                TAPS, DILATION, WIDE, BLOCK_K, EVEN_K, PRECISION,
            )  # fmt: skip
    else:
        total = _chain(
            w, x, channel * K, window, 0, K, size_0, size_1, size_2, total,
            TAPS, DILATION, WIDE, BLOCK_K, EVEN_K, PRECISION,
        )  # fmt: skip
    if BIAS:
        total = total + tl.load(bias + channel).to(dtype)[:, None]
    # A channel that is not there is never stored to.
    out += out_first + (first_sample + sample) * groups * outputs * out_volume
    out += j_0 * out_0 + j_1 * out_1 + j_2 * out_2
    to = out[None, :] + (channel * out_volume)[:, None]
    tl.store(to, total.to(out.dtype.element_ty), mask=(output < outputs)[:, None] & there[None, :])
