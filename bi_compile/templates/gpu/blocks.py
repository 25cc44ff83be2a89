"""How many rows and chunks a program takes. No bit hangs on it, so it may look at the number of rows."""

from dataclasses import dataclass

from bi_compile.numerics import REDUCTION_CHUNK, REDUCTION_LANES
from bi_compile.templates.gpu.row_view import power_of_two

STEPS = REDUCTION_CHUNK // REDUCTION_LANES

_PROGRAMS = 264
"""Enough to fill a GPU: two for each multiprocessor of an H100."""

_ACCUMULATORS = 512
"""Of one program, where there are rows enough."""


@dataclass(frozen=True)
class Blocks:
    """ROWS rows of CHUNKS chunks a program; a chunk is walked in STEPS steps, UNROLL of them without a
    branch."""

    ROWS: int
    CHUNKS: int
    STEPS: int
    UNROLL: int
    num_warps: int

    @classmethod
    def choose(cls, rows: int, n: int, *, columns: bool = False, most_chunks: int = 256) -> "Blocks":
        chunks = min(power_of_two(-(-n // REDUCTION_CHUNK)), most_chunks)
        steps = min(STEPS, power_of_two(-(-n // REDUCTION_LANES)))
        lanes = chunks * REDUCTION_LANES
        wanted = max(1, _ACCUMULATORS // lanes)
        if columns:
            wanted = max(wanted, 16)
        fill = power_of_two(max(1, rows // _PROGRAMS))
        block_rows = min(wanted, fill, power_of_two(rows))
        if columns:
            block_rows = max(block_rows, min(8, power_of_two(rows)))
        accumulators = block_rows * lanes
        warps = min(16, max(1, accumulators // 128))
        each = -(-accumulators // (32 * warps))
        return cls(block_rows, chunks, steps, min(steps, max(1, 32 // each)), warps)

    def arguments(self) -> dict[str, int]:
        return {
            "ROWS": self.ROWS, "CHUNKS": self.CHUNKS, "STEPS": self.STEPS, "UNROLL": self.UNROLL,
            "num_warps": self.num_warps,
        }  # fmt: skip
