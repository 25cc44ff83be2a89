"""`bi_compile::attention` on CUDA devices: which tile, and whether splits are walked in parallel."""

import math
from dataclasses import dataclass

import torch
import triton

from bi_compile.numerics import ATTENTION_GPU_FIRST_SPLITS, ATTENTION_GPU_KV_SPLIT
from bi_compile.numerics import ATTENTION_KV_BLOCK as BLOCK
from bi_compile.templates.attention.contract import refuse_dtype
from bi_compile.templates.attention.gpu_kernels import attend
from bi_compile.templates.attention.gpu_maps import (
    Columns,
    in_whole_lines,
    mappable,
    row_strides,
    tensor_maps,
)
from bi_compile.templates.attention.gpu_masks import ReadMask
from bi_compile.templates.attention.gpu_merge import merge_splits
from bi_compile.templates.attention.gpu_tiles import CAREFUL, FEW_ROWS, Pieces, Tile, careful_programs, pairs
from bi_compile.templates.gpu.device import ALL_REGISTERS, COMPILATION, processor
from bi_compile.templates.gpu.row_view import power_of_two
from bi_compile.templates.registry import implements

_MERGED = 2**12
"""Numbers of the parts that a program of `merge_splits` holds, by its 32 threads."""

_LOG2_E = float.fromhex("0x1.715476p+0")


@dataclass(frozen=True)
class Exponent:
    """How a product of query and key becomes the exponent of a weight, and a mask's number with it."""

    before: float
    """What a product is multiplied by first, where `natural`."""
    scale: float
    """What a score is multiplied by in the exponent: its unit is then that of the power."""
    unit: float
    """What a mask's number is multiplied by before it is added to a score."""
    natural: bool

    @classmethod
    def of(cls, scale: float, capped: bool, binary: bool) -> "Exponent":
        """binary: powers of two."""
        digits = _LOG2_E if binary else 1.0
        # The largest product is the largest score: not so where the scale is negative.
        if capped or not 2**-20 <= scale <= 2**20:
            return cls(scale, digits, 1.0, True)
        return cls(1.0, scale * digits, 1 / scale, False)

    @property
    def least(self) -> float:
        """The least score of a key that is there, so that the exponent does not overflow."""
        return -(2.0**30) / self.scale


def splits_of(keys: int) -> int:
    """The number of splits of so many keys."""
    short = ATTENTION_GPU_KV_SPLIT // 2
    if keys <= ATTENTION_GPU_FIRST_SPLITS * short:
        return triton.cdiv(keys, short)
    return ATTENTION_GPU_FIRST_SPLITS // 2 + triton.cdiv(keys, ATTENTION_GPU_KV_SPLIT)


def _multiprocessors(x: torch.Tensor) -> int:
    return processor(x.device.index or 0).multiprocessors if x.device.type == "cuda" else 1


def _shared_memory(x: torch.Tensor) -> int:
    return processor(x.device.index or 0).shared_memory if x.device.type == "cuda" else 227 * 2**10


def _starts_early(x: torch.Tensor) -> bool:
    """Whether the device can start a kernel before the last one has ended."""
    return x.device.type == "cuda" and processor(x.device.index or 0).capability >= 90


def _has_tensor_maps(x: torch.Tensor) -> bool:
    """Whether the device copies tiles by tensor maps."""
    return _starts_early(x)


def _has_tensor_memory(x: torch.Tensor) -> bool:
    """Whether the device sums products of 64 rows and more in tensor memory (Blackwell).

    Triton 3.6 cannot compile that for attention, and it would be another family of instructions than that of
    fewer rows.
    """
    return x.device.type == "cuda" and processor(x.device.index or 0).capability >= 100


@implements("attention")
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    refuse_dtype(q)
    given = v.shape[3]
    q, k, v = in_whole_lines(q), in_whole_lines(k), in_whole_lines(v)
    batch, heads, queries, size = q.shape
    kv_heads, keys, value_size = k.shape[1], k.shape[2], v.shape[3]
    out = torch.empty(batch, queries, heads, value_size, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if out.numel() == 0 or keys == 0:
        return out.zero_()[..., :given].contiguous().transpose(1, 2), lse.fill_(-torch.inf)
    group = heads // kv_heads
    rows = queries * group
    # Tensor cores multiply at least 16 columns.
    dims, value_dims = max(16, power_of_two(size)), max(16, power_of_two(value_size))
    binary = q.dtype != torch.float32
    # Larger heads are multiplied by pieces.
    maps = max(dims, value_dims) <= 256 and binary and _has_tensor_maps(q) and mappable(k) and mappable(v)
    columns, value_columns = Columns(dims), Columns(value_dims)
    if maps:
        columns, value_columns = Columns.of(size), Columns.of(value_size)
    widest = max(sum(columns), sum(value_columns))
    processors, splits = _multiprocessors(q), splits_of(keys)
    many = batch * kv_heads >= 2 * processors
    small = _has_tensor_memory(q)
    tile = None
    memory = _shared_memory(q)
    if maps and not small and mask is None and rows <= FEW_ROWS and (splits == 1 or not many):
        tile = Tile.of_few(dims + value_dims, batch * kv_heads, splits, processors, memory)
    if tile is None:
        read_dtype = None if mask is None else mask.dtype
        tile = Tile.choose(
            rows, widest, q.dtype, maps, many, small, read_dtype, memory, softcap != 0, sum(value_columns)
        )
    tiles = triton.cdiv(rows, tile.rows)
    programs = tiles * batch * kv_heads
    # Few rows are bound by reading the keys: there another split is worth it sooner.
    parallel = splits > 1 and programs < processors * (2 if rows <= 16 else 1)
    parts = states = lse
    if parallel:
        shape = (batch * kv_heads, splits, rows)
        parts = torch.empty(*shape, value_size, dtype=torch.float32, device=q.device)
        states = torch.empty(3, *shape, dtype=torch.float32, device=q.device)
    exponent = Exponent.of(scale, softcap != 0, binary)
    # A mask that is read has taken the causal one in.
    read = None if mask is None else ReadMask.of(mask.expand(batch, heads, queries, keys), is_causal)
    kind, lowest = (0, 0.0) if read is None else (read.kind, read.lowest)
    begins, wholes, ends, values = (lse, lse, lse, q) if read is None else read.tensors
    # Without masked keys no weight of 0 may be taken for one.
    flagged = kind > 0 or (is_causal and queries > 1)
    if parallel:
        programs *= splits
    flags = torch.empty(programs if flagged else 0, dtype=torch.int32, device=q.device)
    early = _starts_early(q)
    after_ours = {"launch_pdl": True} if early else {}
    # 2**together heads leave their keys and values in the cache; a grid takes less than 2**16 times as many.
    of_cache = max(1, 2**24 // (keys * (size + value_size) * q.element_size()))
    all_heads = (batch * kv_heads - 1).bit_length()
    together = max(min(3, of_cache.bit_length() - 1, all_heads), all_heads - 15)

    paired = pairs(splits) if parallel and tile.few == 1 else 0
    ways = splits - paired if parallel else 1
    grid = (batch * kv_heads, ways)
    if tiles > 1:
        grid = (tiles << together, ways, triton.cdiv(batch * kv_heads, 1 << together))
    # What a merge adds to: of splits in sequence alone, and of several.
    held, held_dims = lse, 0
    if tile.kept is not None and sum(value_columns) > tile.kept and splits > 1 and not parallel:
        held_dims = sum(value_columns) - tile.kept
        held = torch.empty(math.prod(grid), tile.rows * held_dims, dtype=torch.float32, device=q.device)

    line = 16 // q.element_size() if any(s % 16 for x in (q, k, v) for s in row_strides(x)) else 1

    def launch(grid: tuple[int, ...], tile_here: Tile, apart: bool = False, careful: bool = False) -> None:
        old = not _has_tensor_maps(q)
        # What tells which numbers of a value are there takes registers, too.
        short = (apart and old) or (value_size < value_dims and (apart or value_dims > 256))
        # One split in a loop of its own leaves the assembler another choice of what to keep.
        short = short or (old and splits == 1 and value_dims > 256)
        masked = read is not None
        pieces = Pieces.of(tile_here.rows, dims, value_dims, q.dtype, careful, short, masked)
        maps_here = maps and not careful
        multiplied = Columns(pieces.dims), Columns(pieces.value_dims)
        own_maps = k, k, v, v
        if maps_here:
            # Rows that are few or apart gain nothing where heads are small.
            if not tile_here.few and (widest > 128 or (rows > 16 and not apart)):
                multiplied = columns, value_columns
            own_maps = *tensor_maps(k, multiplied[0], tile_here.keys), *tensor_maps(v, multiplied[1], BLOCK)
        (near, rest), (value_near, value_rest) = multiplied
        # Where shared memory lets no more blocks share a multiprocessor.
        few_blocks = maps and read is not None and (softcap != 0 or (apart and max(dims, value_dims) > 128))
        all_registers = few_blocks or (apart and parallel)
        attend[grid](
            q, k, v, *own_maps, values, begins, wholes, ends, out, lse, parts, states, flags, held,
            queries, keys, heads, kv_heads, batch * kv_heads, splits, tiles, together, programs,
            exponent.before, softcap, exponent.scale, exponent.unit, exponent.least, lowest, 0.0,
            *q.stride(), *k.stride(), *v.stride(), *values.stride()[:3], *begins.stride(),
            SIZE=size, VALUE_SIZE=value_size, DIMS=near, REST=rest,
            VALUE_DIMS=value_near, VALUE_REST=value_rest,
            VALUE_KEYS=pieces.value_keys, GROUP=group, BLOCK_M=tile_here.rows, BINARY=binary,
            NATURAL=exponent.natural, CAPPED=softcap != 0, MASK=kind, CAUSAL=is_causal and kind == 0,
            PARALLEL=parallel, ONE_SPLIT=splits == 1, MAPS=maps_here,
            FLAGGED=flagged, APART=apart, CAREFUL=careful,
            ROWS_OF_TILE=tile.rows, IN_TURNS=tiles > 1, EARLY=early, FEW=tile_here.few,
            PAIRED=paired > 0 and not careful,
            STAGES=tile_here.stages, HELD=held_dims if tile_here is tile else 0, LINE=line,
            LATE=tile_here.late and held_dims > 0 and not (masked or exponent.natural or rest or value_rest),
            num_warps=tile_here.warps, num_stages=tile_here.stages,
            **(ALL_REGISTERS if careful or all_registers else {}),
            **(after_ours if parallel or tile_here != tile else {}), **COMPILATION,
        )  # fmt: skip

    launch(grid, tile)
    if read is not None and read.own_begins:
        spread = Tile.spread(group, max(dims, value_dims), q.dtype, maps, small)
        span = BLOCK * max(1, spread.rows // group)
        of_head = triton.cdiv(triton.cdiv(queries, span) * span * group, spread.rows)
        launch((batch * kv_heads * of_head, ways), spread, apart=True)
    if flagged:
        pieces = Pieces.of(CAREFUL.rows, dims, value_dims, q.dtype, careful=True)
        steps = programs * triton.cdiv(tile.rows, CAREFUL.rows) * triton.cdiv(value_size, pieces.value_dims)
        launch((careful_programs(steps, processors),), CAREFUL, careful=True)
    if parallel:
        # Each thread holds 4 columns at least, and no more numbers than find registers.
        columns_held = max(4 * 32, value_dims)
        at_once = min(power_of_two(splits), max(1, _MERGED // columns_held))
        merge_splits[(batch * kv_heads, rows)](
            parts, states, out, lse, queries, heads, kv_heads, splits,
            VALUE_SIZE=value_size, VALUE_DIMS=columns_held, GROUP=group, BINARY=binary,
            FLAGGED=flagged, EARLY=early, SOON=early and rows < 64, AT_ONCE=at_once,
            # Left to itself, the assembler saves registers by loading later.
            num_warps=1, maxnreg=255, **after_ours, **COMPILATION,
        )  # fmt: skip
    return (out if value_size == given else out[..., :given].contiguous()).transpose(1, 2), lse
