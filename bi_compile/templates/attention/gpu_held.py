"""The sum of finished splits in Triton, partly in memory: registers do not hold it beside the sum of a split.

Its first KEPT columns stay in registers. The others wait in device memory, where each thread has places of
its own, so that none waits for another: left to the compiler they would be spilled, and more with them.
"""

import triton
import triton.language as tl
from triton import knobs

from bi_compile.templates.attention.gpu_arithmetic import added, zeros_of
from bi_compile.templates.gpu.pieces import as_held, from_held, halves, held_at, joined

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)
_PIECE = tl.constexpr(32)
"""Columns that are loaded at a time."""
_BETWEEN_BARRIERS = tl.constexpr(64)
"""Columns that may be on the way at once after the last split: all would not fit registers."""


@triton.jit
def place_of_program(held, nothing, SIZE: tl.constexpr):
    """Where this program holds SIZE numbers.

    held: where the first one does, and the tiles and the heads, 2**together, of a row of the grid, if it has
    several rows: what is given to a kernel takes no register. nothing: 0, told late, so that none of this is
    kept.
    """
    first, tiles, together = held
    number = (tl.program_id(2) + nothing) * ((tiles + nothing) << together) + tl.program_id(0)
    return first + number.to(tl.int64) * SIZE


@triton.jit
def _in_order():
    """What is loaded after this is not loaded before it, to save registers."""
    if not _INTERPRETED:
        tl.inline_asm_elementwise(
            "bar.warp.sync 0xffffffff; mov.u32 $0, 0;", "=r", [], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _sum(held, a, out, c, known):
    """What is held here with a split."""
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    before = from_held(tl.load(held_at(held, M, D), mask=known, other=0.0))
    return added(before, a, out, c)


@triton.jit
def _add(held, a, out, c, known, AT_ONCE: tl.constexpr):
    """Add a split to what is held."""
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    if D > _PIECE:
        near, far = halves(out)
        _add(held, a, near, c, known, AT_ONCE)
        if AT_ONCE > 0 and AT_ONCE < D:
            _in_order()
        _add(held + M * D // 2, a, far, c, known, AT_ONCE)
    else:
        tl.store(held_at(held, M, D), as_held(_sum(held, a, out, c, known)))


@triton.jit
def _take(held, a, out, c):
    """The sum after the last split, of which nothing is held on."""
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    if D > _PIECE:
        near, far = halves(out)
        near = _take(held, a, near, c)
        if D > _BETWEEN_BARRIERS:
            tl.debug_barrier()
        return joined(near, _take(held + M * D // 2, a, far, c))
    else:
        return _sum(held, a, out, c, True)


@triton.jit
def _add_split(kept, held, a, out, c, known, KEPT: tl.constexpr, AT_ONCE: tl.constexpr):
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    if KEPT == 0:
        _add(held, a, out, c, known, AT_ONCE if AT_ONCE else _BETWEEN_BARRIERS)
        return kept
    elif KEPT == D:
        return added(kept, a, out, c)
    else:
        near, far = halves(out)
        # What is held first: its loads take the registers that are free.
        _add(held + M * (D // 2 - KEPT), a, far, c, known, AT_ONCE)
        if AT_ONCE:
            _in_order()
        return _add_split(kept, held, a, near, c, known, KEPT, AT_ONCE)


@triton.jit
def _with_split(kept, held, a, out, c, KEPT: tl.constexpr):
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    if KEPT == 0:
        return _take(held, a, out, c)
    elif KEPT == D:
        return added(kept, a, out, c)
    else:
        near, far = halves(out)
        near = _with_split(kept, held, a, near, c, KEPT)
        if D > _BETWEEN_BARRIERS:
            tl.debug_barrier()
        return joined(near, _take(held + M * (D // 2 - KEPT), a, far, c))


@triton.jit
def nothing_kept(M: tl.constexpr, DIMS: tl.constexpr, REST: tl.constexpr, KEPT: tl.constexpr):
    """The KEPT first columns of a sum of DIMS and REST columns before the first split; one of none."""
    OF_NEAR: tl.constexpr = KEPT if KEPT < DIMS else DIMS
    OF_REST: tl.constexpr = KEPT - OF_NEAR
    if REST:
        return zeros_of(0.0, M, OF_NEAR if OF_NEAR else 1, OF_REST if OF_REST else 1)
    else:
        return zeros_of(0.0, M, OF_NEAR if OF_NEAR else 1, 0)


@triton.jit
def add_split(kept, held, a, out, c, known, KEPT: tl.constexpr, AT_ONCE: tl.constexpr):
    """What is kept, the first KEPT columns, of a sum after a split, whose others are added to what is held.

    kept, out: in one tile or in two. a, c: as in `added`. known: whether anything is held yet, else zeros.
    AT_ONCE: columns that are loaded at a time where some are kept; 0 for as many as find registers.
    """
    M: tl.constexpr = out[0].shape[0]
    D: tl.constexpr = out[0].shape[1]
    OF_NEAR: tl.constexpr = KEPT if KEPT < D else D
    if len(out) > 1:
        # What is held first, as above.
        rest = _add_split(kept[1], held + M * (D - OF_NEAR), a, out[1], c, known, KEPT - OF_NEAR, AT_ONCE)
        return _add_split(kept[0], held, a, out[0], c, known, OF_NEAR, AT_ONCE), rest
    else:
        return (_add_split(kept[0], held, a, out[0], c, known, KEPT, AT_ONCE),)


@triton.jit
def with_split(kept, held, a, out, c, KEPT: tl.constexpr):
    """The whole sum after the last split; see `add_split`."""
    M: tl.constexpr = out[0].shape[0]
    D: tl.constexpr = out[0].shape[1]
    OF_NEAR: tl.constexpr = KEPT if KEPT < D else D
    near = _with_split(kept[0], held, a, out[0], c, OF_NEAR)
    if len(out) > 1:
        tl.debug_barrier()
        return near, _with_split(kept[1], held + M * (D - OF_NEAR), a, out[1], c, KEPT - OF_NEAR)
    else:
        return (near,)
