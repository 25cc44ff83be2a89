"""Depthwise convolutions in Triton: one input channel a group, so an output is one short chain.

The tree is that of the CPU: from +0 one fused multiply-add for each tap in order, in fp32 (fp64 for fp64).
Nothing is padded or gathered: a thread walks the rows of the input that its outputs take in, and each element
that it reads serves all of them. What is outside the input is zero, multiplied like any other element.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from bi_compile import numerics
from bi_compile.templates.convolution.gpu_sides import Side
from bi_compile.templates.gpu import functions
from bi_compile.templates.gpu.device import COMPILATION, Processor
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import power_of_two

_UNROLLED = 400
"""Multiply-adds of a thread, at most, where it has several rows of outputs."""
_KEPT = 128
"""Weights that a thread can keep."""


class Block(NamedTuple):
    """What a program takes; free choices."""

    lanes: int
    """Columns of outputs, of several channels where one has few."""
    rows: int
    warps: int


def is_depthwise(inputs: int, groups: int, kernel: Sequence[int]) -> bool:
    """Whether a convolution is summed here. inputs: channels of a group."""
    return inputs == 1 and groups > 1 and math.prod(kernel) <= numerics.CONTRACTION_CHUNK


@triton.jit(do_not_specialize=["planes"])
def depthwise(
    x, w, bias, out, planes, channels, outputs, size_0, size_1, size_2, grid_0, grid_1, grid_2,
    first_0, first_1, first_2, out_first, out_0, out_1, out_2, out_volume,
    TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    LANES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """ROWS x COLUMNS outputs of LANES / COLUMNS channels, three spatial dimensions.

    x: contiguous [samples, channels / outputs, size_0, size_1, size_2]; w: contiguous [channels, taps].
    planes: samples * channels, `channels` of the output, `outputs` of each group. SPAN: rows of the input
    that ROWS rows of outputs reach over. Positions and out are numbered as in `gpu_kernels.correlate`.
    """
    rows = tl.cdiv(grid_1, ROWS)
    columns = tl.cdiv(grid_2, COLUMNS)
    lane = tl.arange(0, LANES)
    index = tl.program_id(0)
    j_2 = index % columns * COLUMNS + lane % COLUMNS
    index = index // columns
    j_1 = index % rows * ROWS
    index = index // rows
    j_0 = index % grid_0
    plane = (index // grid_0).to(tl.int64) * (LANES // COLUMNS) + lane // COLUMNS
    if WIDE:
        j_0 = j_0.to(tl.int64)
        j_1 = j_1.to(tl.int64)
        j_2 = j_2.to(tl.int64)
    there = (plane < planes) & (j_2 < grid_2)
    channel = plane % channels
    # channels / outputs planes of the input are those of one sample.
    x += (plane // outputs) * size_0 * size_1 * size_2
    w += channel * (TAPS[0] * TAPS[1] * TAPS[2])
    element_2 = j_2 * STRIDE[2] + first_2
    dtype: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    TAPS_0: tl.constexpr = TAPS[0]
    TAPS_1: tl.constexpr = TAPS[1]
    TAPS_2: tl.constexpr = TAPS[2]
    BY: tl.constexpr = DILATION[1]
    STEP: tl.constexpr = STRIDE[1]
    totals = (tl.zeros((LANES,), dtype),) * ROWS
    for tap_0 in tl.static_range(TAPS_0):
        row_0 = j_0 * STRIDE[0] + first_0 + tap_0 * DILATION[0]
        for i in tl.static_range(SPAN):
            # In the order of the taps of each output: backwards, where dilation goes backwards.
            reach = i if BY > 0 else (ROWS - 1) * STEP - i
            row_1 = j_1 * STEP + first_1 + reach
            inside = there & (row_0 >= 0) & (row_0 < size_0) & (row_1 >= 0) & (row_1 < size_1)
            row = x + (row_0 * size_1 + row_1) * size_2
            for tap_2 in tl.static_range(TAPS_2):
                at = element_2 + tap_2 * DILATION[2]
                value = tl.load(row + at, mask=inside & (at >= 0) & (at < size_2), other=0.0).to(dtype)
                for r in tl.static_range(ROWS):
                    walked = reach - r * STEP
                    tap_1 = walked // BY
                    if tap_1 * BY == walked and tap_1 >= 0 and tap_1 < TAPS_1:
                        tap = (tap_0 * TAPS_1 + tap_1) * TAPS_2 + tap_2
                        weight = tl.load(w + tap, mask=there, other=0.0).to(dtype)
                        totals = totals[:r] + (tl.fma(value, weight, totals[r]),) + totals[r + 1 :]  # noqa: RUF005
    out += out_first + plane * out_volume + j_0 * out_0 + j_2 * out_2
    added = tl.zeros((LANES,), dtype)
    if BIAS:
        added = tl.load(bias + channel, mask=there, other=0.0).to(dtype)
    for r in tl.static_range(ROWS):
        total = totals[r]
        if BIAS:
            total = total + added
        total = functions.rounded(total, out.dtype.element_ty)
        tl.store(out + (j_1 + r) * out_1, total, mask=there & (j_1 + r < grid_1))


def choose(processor: Processor, sides: Sequence[Side], planes: int) -> Block:
    """As many rows as leave work for the whole device, and many lanes where there is one row."""
    taps = math.prod(side.taps for side in sides)
    outputs = planes * math.prod(side.outputs for side in sides)
    if sides[1].outputs == 1:
        return Block(512 if taps <= 16 and outputs >= 512 * 4 * processor.multiprocessors else 256, 1, 4)
    rows = power_of_two(sides[1].outputs)
    most = 1 if taps > _KEPT else _UNROLLED // max(1, taps)
    while rows > 1 and (rows > min(8, most) or outputs < rows * 64 * processor.multiprocessors):
        rows //= 2
    return Block(128, rows, 4)


def launch(
    arguments: dict[str, Any], sides: Sequence[Side], samples: int, groups: int, outputs: int, block: Block
) -> Launch:
    """arguments: those of `gpu_kernels.correlate` that are this kernel's too. outputs: of a group."""
    planes = samples * groups * outputs
    columns = min(block.lanes, power_of_two(sides[2].outputs))
    programs = triton.cdiv(planes, block.lanes // columns) * triton.cdiv(sides[2].outputs, columns)
    programs *= sides[0].outputs * triton.cdiv(sides[1].outputs, block.rows)
    own = {name: value for name, value in arguments.items() if name in depthwise.arg_names}
    own |= {
        "planes": planes,
        "TAPS": tuple(side.taps for side in sides),
        "channels": groups * outputs,
        "WIDE": math.prod(side.size for side in sides) >= 2**30,
        "LANES": block.lanes,
        "COLUMNS": columns,
        "ROWS": block.rows,
        "SPAN": (block.rows - 1) * sides[1].stride + (max(1, sides[1].taps) - 1) * abs(sides[1].dilation) + 1,
        "num_warps": block.warps,
        **COMPILATION,
    }
    return Launch(depthwise, (programs,), own)
