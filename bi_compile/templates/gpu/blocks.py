"""How many rows and chunks a program takes. No bit hangs on it, so it may look at the number of rows."""

from dataclasses import dataclass

from bi_compile.numerics import REDUCTION_CHUNK, REDUCTION_LANES
from bi_compile.templates.gpu.row_view import power_of_two

STEPS = REDUCTION_CHUNK // REDUCTION_LANES

_PROGRAMS = 264
"""Enough to fill a GPU: two for each multiprocessor of an H100."""

_THREADS = 128
"""Of one program, where there are rows enough."""

_KEPT = 64
"""Elements that a thread keeps in registers."""


@dataclass(frozen=True)
class Blocks:
    """ROWS rows of CHUNKS chunks a program; a chunk has STEPS steps, UNROLL of them without a branch."""

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
        # Two neighbouring lanes a thread, or one where rows are few and their latency counts.
        few = rows < _PROGRAMS
        each = 1 if few else 2
        block_rows = max(1, (_THREADS * each) // lanes)
        if columns:
            block_rows = max(block_rows, 16)
        block_rows = min(block_rows, power_of_two(max(1, rows // _PROGRAMS)), power_of_two(rows))
        if columns:
            block_rows = max(block_rows, min(8, power_of_two(rows)))
        accumulators = block_rows * lanes
        warps = min(16, max(1, accumulators // (32 * each)))
        each = -(-accumulators // (32 * warps))
        return cls(block_rows, chunks, steps, min(steps, max(1, 64 // each)), warps)

    @property
    def kept(self) -> bool:
        """Whether a program's rows fit in registers."""
        return _KEPT * 32 * self.num_warps >= self.ROWS * self.CHUNKS * REDUCTION_LANES * self.STEPS

    def arguments(self) -> dict[str, int]:
        return {
            "ROWS": self.ROWS, "CHUNKS": self.CHUNKS, "STEPS": self.STEPS, "UNROLL": self.UNROLL,
            "num_warps": self.num_warps,
        }  # fmt: skip
