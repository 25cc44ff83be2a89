"""Which rows a program of attention does: the head, the tile and the split of its place in the grid."""

import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import BLOCK, FIRST_SPLITS

SEVERAL = tl.constexpr(1)
STRANGE = tl.constexpr(2)
"""Flags of a tile: its rows have several first keys; something in it is not finite."""

_AT_ONCE = tl.constexpr(128)
"""Flags that a program of the careful kernel reads together."""


@triton.jit
def _spread(place, TOGETHER: tl.constexpr):
    """The query at this place where TOGETHER queries that are BLOCK apart follow each other."""
    span = BLOCK * TOGETHER
    return place // span * span + place % TOGETHER * BLOCK + place % span // TOGETHER


@triton.jit
def _program(AXIS: tl.constexpr, AGAIN: tl.constexpr):
    """The number of this program. AGAIN: read anew, where what was read first would be kept in a register."""
    if not AGAIN:
        return tl.program_id(AXIS)
    elif AXIS == 0:
        return tl.inline_asm_elementwise("mov.u32 $0, %ctaid.x;", "=r", [], tl.int32, is_pure=False, pack=1)
    elif AXIS == 1:
        return tl.inline_asm_elementwise("mov.u32 $0, %ctaid.y;", "=r", [], tl.int32, is_pure=False, pack=1)
    else:
        tl.static_assert(AXIS == 2)
        return tl.inline_asm_elementwise("mov.u32 $0, %ctaid.z;", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def place_of(
    nothing, splits, tiles, together, all_heads, PARALLEL: tl.constexpr, APART: tl.constexpr,
    IN_TURNS: tl.constexpr, AGAIN: tl.constexpr = False,
):  # fmt: skip
    """Head, tile and split of this program."""
    number, together = _program(0, AGAIN) + nothing, together + nothing
    # The first splits are short: they fill what the others leave.
    split = nothing
    if PARALLEL:
        split = splits - (_program(1, AGAIN) + nothing + 1)
    head, tile = number, nothing
    if APART:
        here = tl.num_programs(0) // all_heads
        head, tile = number // here, number % here
    elif IN_TURNS:
        head = (_program(2, AGAIN) << together) + (number & ((1 << together) - 1))
        tile = tiles - ((number >> together) + 1)
    return head, tile, split


@triton.jit
def paired(number):
    """The first split of a program, by its number, and how many it has: two where they are short."""
    PAIRS: tl.constexpr = FIRST_SPLITS // 2
    split = tl.where(number < PAIRS, 2 * number, number + PAIRS)
    return split, tl.where(number < PAIRS, 2, 1)


@triton.jit
def last_step(flags, programs, STEPS_OF_TILE: tl.constexpr):
    """This program's last step in the careful kernel, one of STEPS_OF_TILE of a tile; -1 if it has none.

    The steps of all tiles are dealt out to the programs in turns.
    """
    stride, steps = tl.num_programs(0), programs * STEPS_OF_TILE
    # A warp has 32 of them: what tells warps apart would be kept in a register.
    own = tl.arange(0, 32) * stride
    last = tl.full((32,), -1, tl.int32)
    for begin in tl.range(tl.program_id(0), steps, stride * _AT_ONCE):
        for ahead in tl.static_range(0, _AT_ONCE, 32):
            step = begin + ahead * stride + own
            strange = tl.load(flags + step // STEPS_OF_TILE, mask=step < steps, other=0) & STRANGE
            last = tl.where(strange != 0, step, last)
    return tl.max(last, 0)


@triton.jit
def place_again(turn, tiles, all_heads, PARTS_OF_TILE: tl.constexpr, VALUE_PIECES: tl.constexpr):
    """Number of the flag, head, tile, split and piece of the values of a step of the careful kernel.

    turn: -1 for the program's first step, -2 for its second, and so on.
    """
    step = tl.program_id(0) + (-1 - turn) * tl.num_programs(0)
    piece, part = step % VALUE_PIECES, step // VALUE_PIECES
    number = part // PARTS_OF_TILE
    tile = number // all_heads % tiles * PARTS_OF_TILE + part % PARTS_OF_TILE
    return number, number % all_heads, tile, number // all_heads // tiles, piece


@triton.jit
def rows_of(tile, kv_head, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, APART: tl.constexpr):
    """The rows of a tile, their queries and their heads."""
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query, own_head = row // GROUP, kv_head * GROUP + row % GROUP
    if APART:
        query = _spread(query, BLOCK_M // GROUP if GROUP < BLOCK_M else 1)
        row = query * GROUP + row % GROUP
    return row, query, own_head
