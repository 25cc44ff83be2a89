"""Configurations of the CUDA matrix product, and which one a product gets.

Every configuration computes the same tree, so the choice is free to look at M: it is made at each call from
the price of each configuration, three times that were fitted to measurements where there are any. A product
runs in waves of tiles; a wave costs a step for each block of K it walks, and every tile a store.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from bi_compile import numerics
from bi_compile.templates.gpu.device import ALL_REGISTERS, Processor

PRECISION = {
    torch.float32: "tf32x3",
    torch.float64: "fma",
    torch.bfloat16: "ieee",
    torch.float16: "ieee",
}


class Config(NamedTuple):
    """Free choices: none of them enters the tree, except that fp32 has one block_k and is never swapped."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    """Compute the transposed tile: N, not M, then fills the 64 rows of Hopper's tensor core instruction."""
    descriptors: bool = False
    """Read through the tensor memory accelerator (capability 90 and up), where the layout allows it."""
    parallel: bool = False
    """Give the chunks of K to different blocks."""
    wide: bool = False
    """Half a block_n more columns (descriptors only): 96 or 192 fit where no power of two does."""

    @property
    def more(self) -> int:
        """Columns of a tile beyond block_n."""
        return self.block_n // 2 if self.wide else 0

    @property
    def large(self) -> bool:
        """Whether a heavy epilogue would not fit registers beside a tile."""
        return self.block_m * (self.block_n + self.more) >= 128 * 128

    @property
    def one_sum(self) -> bool:
        """Whether registers hold a tile's sum once and not twice, as chunks walked in sequence ask for."""
        return self.block_m * (self.block_n + self.more) > 128 * 192

    def walks(self, capability: int, plain: bool = False) -> bool:
        """Whether it may walk chunks in sequence. plain: in a product of groups, where nothing `waits`."""
        return not self.one_sum or (capability == 90 and not plain)

    def waits(self, capability: int, form: str) -> bool:
        """Whether a quarter of its sum waits in device memory while a chunk is summed.

        So nothing is spilled, and the tiles that do without take 1.04 to 1.18 times as long (docs/gpu.md).
        """
        return form == "sequence" and capability == 90 and self.one_sum

    @property
    def piece(self) -> int:
        """Columns of which there are 16 elements or fewer to a thread."""
        return max(16, 512 * self.warps // self.block_m)

    def stored_at_a_time(self, capability: int, addend: str, followed: bool) -> int:
        """Columns that are finished and stored at a time: all, where registers do.

        addend: as in `gpu_kernels._finish`. followed: whether there is an epilogue, which may read as much.
        """
        if capability >= 100:
            return self.piece
        return self.block_n // (2 if self.one_sum and addend.startswith("matrix") and followed else 1)

    def options(self, capability: int, chunks: str = "one") -> dict[str, int]:
        """Triton's. All registers where the compiler spills without; on Hopper most are measured so."""
        all_registers = capability != 90 or (chunks == "sequence" and not self.descriptors)
        return {"num_warps": self.warps, "num_stages": self.stages} | (ALL_REGISTERS if all_registers else {})

    def finishes(self, processor: Processor, element_size: int, batch: int, m: int, n: int) -> bool:
        """Whether the product's own kernel works out a heavy epilogue.

        Nothing runs beside it there, so from the second wave of tiles on a kernel of its own is faster.
        """
        tiles = batch * math.ceil(m / self.block_m) * math.ceil(n / (self.block_n + self.more))
        at_a_time = processor.multiprocessors * self.resident(processor, element_size)
        return not self.large and tiles <= at_a_time

    def shared_memory(self, element_size: int) -> int:
        """Bytes of the tiles in flight."""
        return self.stages * (self.block_m + self.block_n + self.more) * self.block_k * element_size

    def resident(self, processor: Processor, element_size: int) -> int:
        """Blocks that run on one multiprocessor at a time."""
        return max(1, min(processor.shared_memory // self.shared_memory(element_size), 16 // self.warps))


class Priced(NamedTuple):
    """A configuration and its times in microseconds."""

    config: Config
    step: float
    """One block of K in all tiles of a wave."""
    tile: float
    """Finishing and storing one tile."""
    start: float
    """Everything else."""


# Fitted to an H100 (80 GB HBM3) with triton 3.6.0: 12 shapes of weights, M from 1 to 8192.
_HOPPER_SWAPPED = {"swap": True, "descriptors": True}
_HOPPER = {"descriptors": True}
_HOPPER_WIDE = {"descriptors": True, "wide": True}
SM_90 = (
    Priced(Config(16, 64, 256, 4, 5, **_HOPPER_SWAPPED), 0.686, 3.009, 0.0),
    Priced(Config(16, 64, 128, 4, 5, **_HOPPER_SWAPPED), 0.334, 4.228, 0.0),
    Priced(Config(64, 16, 256, 4, 5, **_HOPPER), 0.445, 1.37, 0.067),
    Priced(Config(64, 32, 256, 4, 4, **_HOPPER), 0.532, 1.015, 1.939),
    Priced(Config(64, 64, 128, 4, 6, **_HOPPER), 0.324, 1.305, 1.901),
    Priced(Config(64, 64, 128, 4, 4, **_HOPPER_WIDE), 0.433, 1.057, 2.583),
    Priced(Config(64, 128, 128, 4, 4, **_HOPPER), 0.464, 1.707, 1.462),
    Priced(Config(64, 128, 64, 4, 5, **_HOPPER_WIDE), 0.312, 1.797, 1.679),
    Priced(Config(128, 128, 64, 8, 6, **_HOPPER), 0.353, 2.692, 1.155),
    Priced(Config(128, 128, 64, 8, 5, **_HOPPER_WIDE), 0.542, 3.307, 1.375),
    Priced(Config(128, 256, 64, 8, 3, **_HOPPER), 0.648, 2.894, 1.615),
    Priced(Config(128, 256, 64, 8, 4, **_HOPPER), 0.639, 3.479, 1.372),
)
_K32 = numerics.CONTRACTION_GPU_FP32_BLOCK
SM_90_FP32 = (
    Priced(Config(16, 32, _K32, 4, 6, **_HOPPER), 0.653, 0.759, 0.747),
    Priced(Config(16, 64, _K32, 4, 6, **_HOPPER), 0.72, 0.816, 1.097),
    Priced(Config(16, 128, _K32, 4, 4, **_HOPPER), 0.884, 2.482, 2.131),
    Priced(Config(64, 32, _K32, 4, 5, **_HOPPER), 0.738, 2.919, 0.0),
    Priced(Config(64, 64, _K32, 4, 4, **_HOPPER), 0.938, 4.6, 0.0),
    Priced(Config(128, 64, _K32, 8, 4, **_HOPPER), 1.221, 5.606, 0.0),
    Priced(Config(128, 128, _K32, 8, 3, **_HOPPER), 1.763, 12.785, 0.0),
)
# Pointers: for the architectures before Hopper, for batches of matrices and for layouts that descriptors
# cannot say. Of their fp32 nothing was measured; the times are those of descriptors.
POINTERS = (
    Priced(Config(16, 32, 128, 4, 5), 0.377, 0.589, 1.42),
    Priced(Config(64, 32, 128, 4, 5), 0.318, 1.397, 1.481),
    Priced(Config(64, 64, 128, 4, 4), 0.41, 1.551, 1.374),
    Priced(Config(64, 64, 64, 4, 5), 0.299, 1.208, 0.619),
    Priced(Config(128, 64, 64, 8, 4), 0.379, 2.129, 0.0),
    Priced(Config(128, 128, 64, 8, 3), 0.574, 3.116, 0.0),
)
POINTERS_FP32 = (
    Priced(Config(16, 32, _K32, 4, 5), 0.653, 0.759, 0.747),
    Priced(Config(16, 64, _K32, 4, 5), 0.72, 0.816, 1.097),
    Priced(Config(64, 32, _K32, 4, 4), 0.738, 2.919, 0.0),
    Priced(Config(64, 64, _K32, 4, 4), 0.938, 4.6, 0.0),
)

# Before Hopper, with mma.sync, of which two sums of a tile and its operands fill the registers. Not measured.
POINTERS_BEFORE_90 = (*POINTERS[:-1], Priced(Config(128, 128, 32, 8, 4), 0.287, 3.116, 0.0))
POINTERS_FP32_BEFORE_90 = (*POINTERS_FP32[:-1], Priced(Config(32, 64, _K32, 4, 4), 0.738, 2.919, 0.0))

_BANDWIDTH = {80: 1.5e6, 86: 0.7e6, 89: 0.8e6, 90: 3.0e6, 100: 6.0e6}
"""Bytes of device memory per microsecond."""
_PARTIAL_BYTES = 2**28
"""The most that chunks summed in parallel may keep in device memory."""


def candidates(processor: Processor, dtype: torch.dtype, descriptors: bool) -> tuple[Priced, ...]:
    """The configurations shipped for a device; descriptors: whether the operands allow them."""
    single = dtype == torch.float32
    described = descriptors and processor.capability >= 90
    if described:
        shipped = SM_90_FP32 if single else SM_90
    elif processor.capability >= 90:
        shipped = POINTERS_FP32 if single else POINTERS
    else:
        shipped = POINTERS_FP32_BEFORE_90 if single else POINTERS_BEFORE_90
    return tuple(p for p in shipped if _runs(p.config, processor, dtype.itemsize))


def _runs(config: Config, processor: Processor, element_size: int) -> bool:
    # On Blackwell a tile of 64 rows is summed in tensor memory. A smaller one is not: another family of
    # instructions, which nobody has compared there, so it stays out.
    one_family = processor.capability < 100 or config.block_m >= 64 or config.swap
    return one_family and config.shared_memory(element_size) <= processor.shared_memory


@functools.lru_cache(maxsize=65536)
def choose(
    processor: Processor,
    dtype: torch.dtype,
    batch: int,
    m: int,
    n: int,
    k: int,
    descriptors: bool,
    plain: bool = False,
) -> Config:
    """The configuration with the lowest price for a product of [batch, m, k] and [batch, k, n].

    plain: none that is wide or parallel, and nothing waits in memory.
    """
    priced = candidates(processor, dtype, descriptors)
    if plain:
        priced = tuple(p for p in priced if not p.config.wide)
    rows = max(16, 1 << (m - 1).bit_length())
    small = [p for p in priced if p.config.block_m <= rows] or list(priced)
    chunks = math.ceil(k / numerics.contraction_gpu_chunk(dtype.itemsize))
    forms: Iterable[bool] = (False,)
    if not plain and chunks > 1 and 4 * chunks * batch * m * n <= _PARTIAL_BYTES:
        forms = (False, True)
    best = min(
        ((_time(p, processor, dtype, batch, m, n, k, parallel), i, parallel)
         for i, p in enumerate(small) for parallel in forms
         if chunks <= 1 or parallel or p.config.walks(processor.capability, plain))
    )  # fmt: skip
    return small[best[1]].config._replace(parallel=best[2])


def _time(
    priced: Priced,
    processor: Processor,
    dtype: torch.dtype,
    batch: int,
    m: int,
    n: int,
    k: int,
    parallel: bool,
) -> float:
    """Microseconds: the larger of what the multiprocessors and the memory take, rounded at the corner."""
    config, size = priced.config, dtype.itemsize
    chunk = numerics.contraction_gpu_chunk(size)
    pieces = batch * math.ceil(m / config.block_m) * math.ceil(n / (config.block_n + config.more))
    moved = size * batch * (m * k + n * k + m * n)
    steps, starts = math.ceil(k / config.block_k), 1
    if parallel:
        chunks = math.ceil(k / chunk)
        pieces *= chunks
        steps = chunk // config.block_k
        starts = 2
        moved += 6 * chunks * batch * m * n
    at_a_time = processor.multiprocessors * config.resident(processor, size)
    waves = math.ceil(pieces / at_a_time)
    each = math.ceil(pieces / processor.multiprocessors)
    computing = waves * steps * priced.step + each * priced.tile + starts * priced.start
    memory = moved / _BANDWIDTH.get(processor.capability, 1.5e6)
    return (computing**8 + memory**8) ** (1 / 8)


def rows_of_whole_lines(rows: int, columns: int, row: int, column: int, size: int) -> bool:
    """Whether the tensor memory accelerator can read a matrix of these strides: rows of whole 16 bytes."""
    return column == 1 and row >= columns and row * size % 16 == 0 and rows > 0
