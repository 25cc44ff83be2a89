"""The passes in order, and the one table of decompositions that compiled graphs and eager mode share."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bi_compile import inductor
from bi_compile.passes import (
    attention,
    complex_numbers,
    contraction,
    convolution,
    creation,
    distance,
    embedding_bag,
    fast_path,
    grid_sampling,
    interpolation,
    normalization,
    padding,
    pointwise,
    pooling,
    pooling_gradients,
    reduction,
    scan,
    scatter,
    softmax,
    sort,
    windows,
)
from bi_compile.passes import dropout as per_sample_dropout

PIPELINE = (
    fast_path,  # whole layers
    attention,  # whole, with what it hands to its gradient
    contraction,  # the products first: other decompositions end in them
    convolution,  # likewise, with their gradients
    distance,  # norms of differences between rows
    normalization,  # whole norms before the sums they are made of
    softmax,  # likewise
    pooling,  # windows, by sums or elementwise chains
    pooling_gradients,  # likewise
    padding,  # gradients alone, by additions
    interpolation,  # between pixels, by sums and by additions to them
    grid_sampling,  # places between pixels, by gathers, and by additions to them
    reduction,  # what is left of sums, maxima and variances
    sort,  # selections before the extrema and gathers they are made of
    scan,  # running sums and products
    embedding_bag,  # whole bags before the gathers and additions they are made of
    scatter,  # additions and other reductions by index
    creation,  # numbers at equal distances, whose last bit hosts choose
    windows,  # likewise, of signal processing
    complex_numbers,  # as pairs of their parts
    pointwise,  # one rounding for ops that hosts contract or choose formulas for
)
"""Families of rewrites. A later one never sees what an earlier one replaced."""


class DecompositionTable(dict[torch._ops.OpOverload, Callable[..., Any]]):
    """Op -> decomposition. Pickled by reference, so that Inductor's caches can key on it."""

    def __init__(self, table: Mapping[torch._ops.OpOverload, Callable[..., Any]], dropout: str) -> None:
        super().__init__(table)
        self._dropout = dropout

    def __reduce__(self) -> tuple[Callable[[str], "DecompositionTable"], tuple[str]]:
        return decompositions, (self._dropout,)


@cache
def decompositions(dropout: str = "refuse") -> DecompositionTable:
    """Inductor's own decompositions with ours in front. dropout: the option."""
    stock = inductor.stock_decompositions()
    ours = {op: _or_stock(build, stock[op]) if op in stock else build for op, build in canonical().items()}
    if dropout == "per_sample":
        ours |= {rewrite.op: rewrite.build for rewrite in per_sample_dropout.REWRITES}
    return DecompositionTable({**stock, **ours}, dropout)


def _or_stock(build: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """`build`, or for calls on integers alone the host's decomposition: it has no lowering for these.

    Floating-point calls that `build` declines stay as they are, for the check of the final graph to refuse.
    """

    def decompose(*args: Any, **kwargs: Any) -> Any:
        result = build(*args, **kwargs)
        floating = any(
            isinstance(a, torch.Tensor) and a.is_floating_point() for a in (*args, *kwargs.values())
        )
        return stock(*args, **kwargs) if result is NotImplemented and not floating else result

    return decompose


@cache
def canonical() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Our rewrites alone, and what must reach the final check whole: op -> build."""
    kept = normalization.KEPT_WHOLE
    rewrites = [*kept, *(rewrite for family in PIPELINE for rewrite in family.REWRITES)]
    return {rewrite.op: rewrite.build for rewrite in rewrites}


@cache
def fingerprint() -> str:
    """Digest of every source file of the package and the torch version: part of every cache key."""
    digest = hashlib.sha256(torch.__version__.encode())
    root = Path(__file__).resolve().parent
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".def"):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
