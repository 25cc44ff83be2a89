"""How many rows and chunks a program takes. No bit hangs on it, so it may look at the number of rows."""

from dataclasses import dataclass, fields
from typing import Any

from bi_compile.numerics import REDUCTION_CHUNK, REDUCTION_LANES
from bi_compile.templates.gpu.row_view import RowView, power_of_two

STEPS = REDUCTION_CHUNK // REDUCTION_LANES

PROGRAMS = 264
"""Enough to fill a GPU: two for each multiprocessor of an H100."""

_MOST_WARPS = 16

_KEPT = 64
"""Registers of a thread for the elements of its rows."""


@dataclass(frozen=True)
class Blocks:
    """ROWS rows of CHUNKS chunks a program; a chunk has STEPS steps, UNROLL of them without a branch.

    Results of the shape of the rows are written TILE elements of a row at a time. WHOLE, EVEN: chunks and
    tiles are full, so that no element has to be asked whether it is there; FULL: chunks are full or absent.
    KEPT: the rows fit in registers.
    """

    ROWS: int
    CHUNKS: int
    STEPS: int
    UNROLL: int
    TILE: int
    WHOLE: bool
    FULL: bool
    EVEN: bool
    KEPT: bool
    num_warps: int

    @classmethod
    def of(cls, view: RowView, chunks: int, *, rows: int, each: int, size: int = 4) -> "Blocks":
        """`rows` rows by `chunks` chunks of elements of `size` bytes.

        each: accumulators of a thread; more where there would be too many threads.
        """
        steps = min(STEPS, max(1, -(-view.n // REDUCTION_LANES)))
        # Few numbers of steps, for each is a kernel of its own.
        steps = power_of_two(steps) if steps <= 8 else -(-steps // 8) * 8
        accumulators = rows * chunks * REDUCTION_LANES
        warps = min(_MOST_WARPS, max(1, accumulators // (32 * each)))
        each = -(-accumulators // (32 * warps))
        chunk = steps * REDUCTION_LANES
        length = chunks * chunk
        even = view.n > 0 and view.rows % rows == 0
        whole = even and view.n % length == 0
        return cls(
            rows, chunks, steps, steps if each * steps <= _KEPT else min(8, steps),
            tile := _tile(view, length, rows, warps), WHOLE=whole, FULL=view.n % chunk == 0,
            EVEN=even and view.n % tile == 0, KEPT=each * steps * max(4, size) <= 4 * _KEPT, num_warps=warps,
        )  # fmt: skip

    @classmethod
    def for_rows(
        cls, view: RowView, *, size: int, most_chunks: int, alike: int = 1, many: int = PROGRAMS
    ) -> "Blocks":
        """Whole rows, where they are no longer than `most_chunks`, or the first span of that many chunks.

        alike: rows of a program that share something to be read.
        many: so many rows wait for one another, and what counts is not how long one takes.
        """
        chunks = min(power_of_two(-(-view.n // REDUCTION_CHUNK)), most_chunks)
        lanes = chunks * REDUCTION_LANES
        enough = power_of_two(max(1, view.rows // PROGRAMS))
        # One accumulator a thread has the least latency. Two are better for many rows: wider reads.
        if view.rows < many or size > 2 or view.n % REDUCTION_CHUNK:
            each, rows = 1, max(1, 128 // lanes)
        else:
            each, rows = 2, max(1, min(alike, 256 // lanes))
        rows = min(rows, enough)
        if view.columns:
            rows = max(min(16, enough), min(8, power_of_two(view.rows)))
        return cls.of(view, chunks, rows=rows, each=each, size=size)

    @classmethod
    def for_spans(cls, view: RowView, *, size: int, most_chunks: int) -> "Blocks":
        """Rows, or spans of a row where that makes more programs of few long ones."""
        total = max(1, -(-view.n // REDUCTION_CHUNK))
        if view.columns:
            # A line of memory holds neighbours of all rows; a chunk a program, for they are many then.
            rows = min(32, power_of_two(view.rows))
            while rows > 16 and view.rows * total < PROGRAMS * rows:
                rows //= 2
            return cls.of(view, 1, rows=rows, each=16)
        chunks = min(power_of_two(total), most_chunks)
        while chunks > 8 and total > 32 and view.rows * total < PROGRAMS * chunks:
            chunks //= 2
        if view.rows < PROGRAMS:
            return cls.of(view, chunks, rows=1, each=1, size=size)
        short = power_of_two(view.n)
        each = (4 if chunks <= 4 else 2) * max(1, min(4, 256 // short))
        return cls.of(view, chunks, rows=max(1, each // chunks), each=each, size=size)

    def arguments(self, kernel: Any) -> dict[str, Any]:
        """Those that the kernel takes, and the number of warps."""
        names = (*kernel.arg_names, "num_warps")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in names}


def _tile(view: RowView, length: int, rows: int, warps: int) -> int:
    """How much of a row is written at a time."""
    threads = 32 * warps
    at_once = power_of_two(length)
    if at_once != view.n:
        # Up to 16 bytes a thread, and less where that leaves no part of a tile empty.
        at_once = min(at_once, 8 * threads // rows)
        if (view.n & -view.n) >= 4 * threads // rows:
            at_once = min(at_once, view.n & -view.n)
    return max(1, min(at_once, _KEPT * threads // rows))
