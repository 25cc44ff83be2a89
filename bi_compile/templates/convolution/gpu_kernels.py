"""Convolutions in Triton: matrix products whose second matrix is gathered from the input as it is needed.

The tree is that of `templates/contraction/gpu_kernels.py`, the product of the weights [outputs, K] and the
windows [K, positions], K counting (tap, input channel of the group): chunks of K, each one chain from +0,
added in index order. Tiles, warps and stages are free, but for fp32, which has one block of K.

Channels come last in both operands, so that the elements of a block of K lie side by side in memory.
Rows and columns of a tile that are not there are those of its last one once more, and not stored; beyond K
there are zeros.
"""

import triton
import triton.language as tl

from bi_compile.templates.gpu.pieces import halves


@triton.jit
def channels_last(
    x, out, channels, size_0, size_1, size_2, x_sample, x_channel, x_0, x_1, x_2,
    before_0, before_1, before_2, to_0, to_1, to_2, WIDE: tl.constexpr,
    BLOCK_AT: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """x [samples, channels, size_0, size_1, size_2] to contiguous [samples, to_0, to_1, to_2, channels].

    x of any strides, among zeros: `before` of them in each dimension, and behind what there is room for.
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    index = tl.program_id(0) // blocks
    places = tl.cdiv(to_0 * to_1 * to_2, BLOCK_AT)
    sample = (index // places).to(tl.int64)
    at = index % places * BLOCK_AT + tl.arange(0, BLOCK_AT)
    channel = tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    there = (at < to_0 * to_1 * to_2)[:, None] & (channel < channels)[None, :]
    i_2 = at % to_2 - before_2
    i_1 = at // to_2 % to_1 - before_1
    i_0 = at // (to_1 * to_2) - before_0
    inside = (i_0 >= 0) & (i_0 < size_0) & (i_1 >= 0) & (i_1 < size_1) & (i_2 >= 0) & (i_2 < size_2)
    if WIDE:
        at = at.to(tl.int64)
        channel = channel.to(tl.int64)
        i_0 = i_0.to(tl.int64)
        i_1 = i_1.to(tl.int64)
        i_2 = i_2.to(tl.int64)
    element = (i_0 * x_0 + i_1 * x_1 + i_2 * x_2)[:, None] + (channel * x_channel)[None, :]
    value = tl.load(x + sample * x_sample + element, mask=there & inside[:, None], other=0.0)
    out += sample * to_0 * to_1 * to_2 * channels
    tl.store(out + at[:, None] * channels + channel[None, :], value, mask=there)


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """total + a x b; in fp64 for one k, a fused multiply-add."""
    if PRECISION == "fma":
        a = tl.broadcast_to(a, total.shape)
        return tl.fma(a, tl.broadcast_to(b, total.shape), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _element(
    k, inputs, channels, size_1, size_2, TAPS: tl.constexpr, DILATION: tl.constexpr, WIDE: tl.constexpr
):
    """Where an element of a window lies, from its first one."""
    tap = k // inputs
    tap_2 = tap % TAPS[2] * DILATION[2]
    tap_1 = tap // TAPS[2] % TAPS[1] * DILATION[1]
    tap_0 = tap // (TAPS[1] * TAPS[2]) * DILATION[0]
    place = (tap_0 * size_1 + tap_1) * size_2 + tap_2
    if WIDE:
        place = place.to(tl.int64)
    # Not k % inputs: of a remainder the compiler does not see what divides it, and reads elements one by one.
    return place * channels + (k - tap * inputs)


@triton.jit
def _chain(
    w, x, weights, windows, begin, end, inputs, channels, size_1, size_2, total,
    TAPS: tl.constexpr, DILATION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total [outputs, positions] after k = begin .. end-1.

    weights [outputs], windows [positions]: where the weights of an output lie in w, and a window begins in x.
    WHOLE: a block of K is of one tap.
    """
    block = tl.arange(0, BLOCK_K)
    if WHOLE:
        # The place is counted on, for divisions in every step would take longer than the products.
        tap = begin // inputs
        channel = begin - tap * inputs
        tap_2 = tap % TAPS[2]
        tap_1 = tap // TAPS[2] % TAPS[1]
        element = _element(begin, inputs, channels, size_1, size_2, TAPS, DILATION, WIDE)
        for start in range(begin, end, BLOCK_K):
            a = tl.load(w + weights[:, None] + (start + block)[None, :])
            b = tl.load(x + (windows[None, :] + (element + block)[:, None]))
            total = _product(a, b, total, PRECISION)
            channel += BLOCK_K
            next_2 = channel == inputs
            channel = tl.where(next_2, 0, channel)
            tap_2 += next_2.to(tl.int32)
            next_1 = tap_2 == TAPS[2]
            tap_2 = tl.where(next_1, 0, tap_2)
            tap_1 += next_1.to(tl.int32)
            next_0 = tap_1 == TAPS[1]
            tap_1 = tl.where(next_0, 0, tap_1)
            element += BLOCK_K
            element += tl.where(next_2, DILATION[2] * channels - inputs, 0)
            element += tl.where(next_1, (DILATION[1] * size_2 - TAPS[2] * DILATION[2]) * channels, 0)
            element += tl.where(next_0, (DILATION[0] * size_1 - TAPS[1] * DILATION[1]) * size_2 * channels, 0)
    else:
        for start in range(begin, end, BLOCK_K):
            k = start + block
            element = _element(k, inputs, channels, size_1, size_2, TAPS, DILATION, WIDE)
            a = tl.load(w + weights[:, None] + k[None, :], mask=(k < end)[None, :], other=0.0)
            b = tl.load(x + (windows[None, :] + element[:, None]), mask=(k < end)[:, None], other=0.0)
            total = _product(a, b, total, PRECISION)
    return total


@triton.jit
def _store(total, out, planes, places, filled, there, PIECE: tl.constexpr):
    """Store a tile to out + planes + places, PIECE positions at a time: so many addresses fit registers."""
    if total.shape[1] > PIECE:
        left, right = halves(total)
        left_places, right_places = halves(places)
        left_there, right_there = halves(there)
        _store(left, out, planes, left_places, filled, left_there, PIECE)
        _store(right, out, planes, right_places, filled, right_there, PIECE)
    else:
        at = out + (places[None, :] + planes[:, None])
        tl.store(at, total, mask=filled[:, None] & there[None, :])


@triton.jit(do_not_specialize=["samples"])
def correlate(
    x, w, bias, out, samples, groups, inputs, outputs, K, size_0, size_1, size_2, grid_0, grid_1, grid_2,
    first_0, first_1, first_2, out_first, out_0, out_1, out_2, out_volume,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKED: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_AT: tl.constexpr, BLOCK_K: tl.constexpr, PIECE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of outputs and positions of one group, three spatial dimensions.

    x: contiguous [samples, size_0, size_1, size_2, groups * inputs], padding included; w: contiguous [groups,
    outputs, K]. The output at position j of a dimension of grid_0, grid_1 or grid_2 positions takes in the
    elements j * STRIDE + first + tap * DILATION, tap = 0 .. TAPS-1. It is written to
    out_first + j_0 * out_0 + j_1 * out_1 + j_2 * out_2 of the out_volume elements of its channel.
    CHUNKED: K is longer than CHUNK. WIDE: what a tile reads or writes spans 2^31 elements or more.
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
    x += first_sample * size_0 * size_1 * size_2 * channels + group * inputs
    if WIDE:
        sample = sample.to(tl.int64)
    window = (sample * size_0 + j_0 * STRIDE[0] + first_0) * size_1 + j_1 * STRIDE[1] + first_1
    window = (window * size_2 + j_2 * STRIDE[2] + first_2) * channels
    filled = tl.minimum(output, outputs - 1)
    if WIDE:
        filled = filled.to(tl.int64)
    w += group * outputs * K
    weights = filled * K
    dtype: tl.constexpr = tl.float64 if PRECISION == "fma" else tl.float32
    total = tl.zeros((BLOCK_OUT, BLOCK_AT), dtype)
    if CHUNKED:
        for chunk in range(0, K, CHUNK):
            total += _chain(
                w, x, weights, window, chunk, tl.minimum(K, chunk + CHUNK), inputs, channels, size_1, size_2,
                tl.zeros((BLOCK_OUT, BLOCK_AT), dtype),
                TAPS, DILATION, WIDE, BLOCK_K, WHOLE, PRECISION,
            )  # fmt: skip
    else:
        total = _chain(
            w, x, weights, window, 0, K, inputs, channels, size_1, size_2, total,
            TAPS, DILATION, WIDE, BLOCK_K, WHOLE, PRECISION,
        )  # fmt: skip
    if BIAS:
        total = total + tl.load(bias + group * outputs + filled).to(dtype)[:, None]
    # A channel that is not there is never stored to.
    out += out_first + (first_sample * groups + group) * outputs * out_volume
    place = sample * groups * outputs * out_volume + j_0 * out_0 + j_1 * out_1 + j_2 * out_2
    planes = filled * out_volume
    _store(total.to(out.dtype.element_ty), out, planes, place, output < outputs, there, PIECE)
