"""`bi_compile::attention` on CUDA devices: which tile, and whether splits are walked in parallel."""

import math
from dataclasses import dataclass

import torch
import triton

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.numerics import ATTENTION_GPU_KV_SPLIT
from bi_compile.templates.attention.gpu_kernels import attend, merge_splits
from bi_compile.templates.gpu.device import COMPILATION, processor
from bi_compile.templates.gpu.row_view import power_of_two
from bi_compile.templates.registry import implements

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tile:
    """Free choices: none of them enters a row's bits."""

    rows: int
    warps: int
    stages: int

    @classmethod
    def choose(cls, rows: int, dims: int, dtype: torch.dtype, masked: bool) -> "Tile":
        """For `rows` that share their keys, head sizes padded to `dims`, with a mask to read or not."""
        if dtype == torch.float32:
            return cls(16, 8, 1)
        if rows <= 16:
            return cls(16, 4, 3 if dims <= 128 else 2)
        if dims > 128:
            return cls(32, 8, 2)
        if masked:
            return cls(64, 8, 3)
        if rows <= 64:
            return cls(64, 4 if dims <= 64 else 8, 3)
        return cls(128, 8, 3)


def _multiprocessors(x: torch.Tensor) -> int:
    return processor(x.device.index or 0).multiprocessors if x.device.type == "cuda" else 1


def _widened(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask as 16-bit numbers; broadcast dims stay so.

    Triton permutes the inner dim of a product by the narrowest load behind its operands: bytes of a mask
    would give the weights, that depend on it, another order of summation than they have without a mask.
    """
    once = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride())]
    return once.to(torch.int16).expand(mask.shape)


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
    if q.dtype == torch.float64:
        raise UnsupportedDtypeError("attention on CUDA devices", str(q.dtype), map(str, _DTYPES))
    batch, heads, queries, size = q.shape
    kv_heads, keys, value_size = k.shape[1], k.shape[2], v.shape[3]
    out = torch.empty(batch, queries, heads, value_size, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if out.numel() == 0 or keys == 0:
        return out.zero_().transpose(1, 2), lse.fill_(-torch.inf)
    group = heads // kv_heads
    rows = queries * group
    # Tensor cores multiply at least 16 columns.
    dims, value_dims = max(16, power_of_two(size)), max(16, power_of_two(value_size))
    tile = Tile.choose(rows, max(dims, value_dims), q.dtype, mask is not None)
    tiles, splits = triton.cdiv(rows, tile.rows), triton.cdiv(keys, ATTENTION_GPU_KV_SPLIT)
    parallel = splits > 1 and tiles * batch * kv_heads < 2 * _multiprocessors(q)
    parts = states = lse
    if parallel:
        shape = (batch * kv_heads, splits, rows)
        parts = torch.empty(*shape, value_size, dtype=torch.float32, device=q.device)
        states = torch.empty(3, *shape, dtype=torch.float32, device=q.device)
    binary = q.dtype != torch.float32
    if binary and not softcap:
        scale = scale * math.log2(math.e)
    kind, mask_strides, lowest = 0, (0, 0, 0, 0), 0.0
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = _widened(mask)
        mask = mask.expand(batch, heads, queries, keys)
        mask_strides = mask.stride()
        kind = 2 if mask.is_floating_point() else 1
        lowest = 0.0 if kind == 1 else torch.finfo(mask.dtype).min
    # Without masked keys no weight of 0 may be taken for one.
    flagged = kind > 0 or (is_causal and queries > 1)
    depth = splits if parallel else 1
    flags = torch.empty(
        depth * batch * kv_heads * tiles if flagged else 0, dtype=torch.int32, device=q.device
    )

    def launch(careful: bool, block_m: int, warps: int, stages: int) -> None:
        attend[(triton.cdiv(rows, block_m), batch * kv_heads, depth)](
            q, k, v, q if mask is None else mask, out, lse, parts, states, flags,
            queries, keys, heads, kv_heads, splits, tiles, scale, softcap, lowest,
            *q.stride(), *k.stride(), *v.stride(), *mask_strides,
            SIZE=size, VALUE_SIZE=value_size, DIMS=dims, VALUE_DIMS=value_dims, GROUP=group, BLOCK_M=block_m,
            BINARY=binary, CAPPED=softcap != 0, MASK=kind, CAUSAL=is_causal, PARALLEL=parallel,
            ONE_SPLIT=splits == 1,
            FLAGGED=flagged,
            FLAGGED_M=tile.rows, CAREFUL=careful, num_warps=warps, num_stages=stages, **COMPILATION,
        )  # fmt: skip

    launch(False, tile.rows, tile.warps, tile.stages)
    if flagged:
        launch(True, 16, 4, 1)
    if parallel:
        block = 1 if rows < 16 else 4
        merge_splits[(triton.cdiv(rows, block), batch * kv_heads)](
            parts, states, out, lse, queries, keys, heads, kv_heads, splits,
            VALUE_SIZE=value_size, VALUE_DIMS=value_dims, GROUP=group, BLOCK_M=block, BINARY=binary,
            **COMPILATION,
        )  # fmt: skip
    return out.transpose(1, 2), lse
