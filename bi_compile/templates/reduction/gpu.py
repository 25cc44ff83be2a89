"""Reductions over any dims on CUDA devices, each result by the tree of templates/gpu/row_tree.

One kernel serves all ops: what enters the tree (`ELEMENT`), how it combines (`KIND`), what becomes of its
root (`FINISH`). A long row is cut into spans of a power of two of chunks, which are subtrees; a second kernel
combines their roots.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, overlap, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.ordering import ordered, unordered
from bi_compile.templates.gpu.row_view import RowView, as_rows, power_of_two
from bi_compile.templates.reduction.shapes import acc_dtype, reduced_shape, wrap_dims
from bi_compile.templates.registry import implements

Dims = Sequence[int]

_SPAN_CHUNKS = 64
_LEAVES = 1024


@triton.jit
def _element(x, shift, number, ELEMENT: tl.constexpr):
    if ELEMENT == "square":
        return x * x
    elif ELEMENT == "deviation":
        return (x - shift) * (x - shift)
    elif ELEMENT == "magnitude":
        return tl.abs(x)
    elif ELEMENT == "nonzero":
        return (x != 0).to(x.dtype)
    elif ELEMENT == "power":
        return functions.pow(tl.abs(x), tl.full([], number, x.dtype) + tl.zeros_like(x))
    elif ELEMENT == "exponential":
        return functions.exp(x - shift)
    else:
        return x


@triton.jit
def _identity(KIND: tl.constexpr):
    if KIND == "prod":
        return 1.0
    elif KIND == "max":
        return -float("inf")
    elif KIND == "min":
        return float("inf")
    else:
        return 0.0


@triton.jit
def _take_in(acc, value, KIND: tl.constexpr):
    if KIND == "prod":
        return acc * value
    elif KIND == "max":
        return tl.maximum(acc, ordered(value, KIND))
    elif KIND == "min":
        return tl.minimum(acc, ordered(value, KIND))
    else:
        return acc + value


@triton.jit
def _start(value, KIND: tl.constexpr):
    """Accumulators of the shape of `value` that hold nothing yet."""
    empty = tl.full(value.shape, _identity(KIND), value.dtype)
    if KIND == "max" or KIND == "min":
        return ordered(empty, KIND)
    else:
        return empty


@triton.jit
def _root(leaves, KIND: tl.constexpr, dtype: tl.constexpr):
    """[ROWS, leaves] -> [ROWS]."""
    if KIND == "max":
        return unordered(tl.max(leaves, 1), dtype)
    elif KIND == "min":
        return unordered(tl.min(leaves, 1), dtype)
    else:
        return row_tree.fold_chunks(leaves, KIND == "prod")


@triton.jit
def _finished(root, shift, number, FINISH: tl.constexpr):
    if FINISH == "quotient":
        return functions.divide(root, tl.full([], number, root.dtype) + tl.zeros_like(root))
    elif FINISH == "root":
        return functions.sqrt(root)
    elif FINISH == "power":
        return functions.pow(root, tl.full([], number, root.dtype) + tl.zeros_like(root))
    elif FINISH == "logarithm":
        return functions.log(root) + shift
    elif FINISH == "finite":
        return tl.where(tl.abs(root) == float("inf"), 0.0, root)
    else:
        return root


@triton.jit(do_not_specialize=["rows"])
def _reduce(
    x, shifts, out, rows, n, power: tl.float64, number: tl.float64,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    KIND: tl.constexpr, ELEMENT: tl.constexpr, FINISH: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    WHOLE: tl.constexpr, FULL: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out[span, row] for ROWS rows and one span of CHUNKS chunks."""
    overlap.follow(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    span = tl.program_id(1)
    there = (row < rows)[:, None, None]
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)[:, None, None]
    first = row_tree.lane_index(CHUNKS)
    if WIDE:
        first = first.to(tl.int64)
    first += span * (CHUNKS * row_tree.CHUNK)
    shift = functions.widened(tl.zeros((ROWS,), out.dtype.element_ty))
    if ELEMENT == "deviation" or ELEMENT == "exponential":
        shift = tl.load(shifts + row, mask=row < rows, other=0.0)
    wide: tl.constexpr = shift.dtype
    lanes = _start(tl.zeros((ROWS, CHUNKS, row_tree.LANES), wide), KIND)
    for step in range(0, STEPS, UNROLL):
        for turn in tl.static_range(UNROLL):
            i = first + (step + turn) * row_tree.LANES
            at = begin + row_tree.element_offset(
                i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
            )
            inside = row_tree.inside(first, step + turn, n, FULL)
            value = functions.widened(row_tree.load(at, there & inside, 0.0, WHOLE))
            value = _element(value, shift[:, None, None], power, ELEMENT)
            if not WHOLE:
                value = tl.where(inside, value, _identity(KIND))
            lanes = _take_in(lanes, value, KIND)
    if KIND == "max":
        leaves = tl.max(lanes, 2)
    elif KIND == "min":
        leaves = tl.min(lanes, 2)
    else:
        leaves = row_tree.fold_lanes(lanes, KIND == "prod")
    result = _finished(_root(leaves, KIND, wide), shift, number, FINISH)
    place = out + span.to(tl.int64) * rows + row
    tl.store(place, functions.rounded(result, out.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "count"])
def _combine(
    parts, shifts, out, rows, count, number: tl.float64,
    KIND: tl.constexpr, FINISH: tl.constexpr, SHIFTED: tl.constexpr, ROWS: tl.constexpr, LEAVES: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """out[group, row] from parts[group * LEAVES + leaf, row]; leaves from `count` on are absent."""
    overlap.follow(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    leaf = group.to(tl.int64) * LEAVES + tl.arange(0, LEAVES)
    there = (row < rows)[:, None] & (leaf < count)[None, :]
    parts = tl.load(parts + leaf[None, :] * rows + row[:, None], mask=there, other=_identity(KIND))
    wide: tl.constexpr = parts.dtype
    leaves = ordered(parts, KIND) if KIND == "max" or KIND == "min" else parts
    shift = tl.zeros((ROWS,), wide)
    if SHIFTED:
        shift = tl.load(shifts + row, mask=row < rows, other=0.0)
    result = _finished(_root(leaves, KIND, wide), shift, number, FINISH)
    tl.store(
        out + group.to(tl.int64) * rows + row,
        functions.rounded(result, out.dtype.element_ty),
        mask=row < rows,
    )


@triton.jit(do_not_specialize=["rows"])
def _first_equal(
    x, extrema, out, rows, n,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    WHOLE: tl.constexpr, FULL: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out[span, row]: the least index within a span that holds the row's extremum, or n."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    span = tl.program_id(1)
    there = (row < rows)[:, None, None]
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)[:, None, None]
    first = row_tree.lane_index(CHUNKS).to(tl.int64) + span * (CHUNKS * row_tree.CHUNK)
    extremum = tl.load(extrema + row, mask=row < rows, other=0.0)[:, None, None]
    found = tl.zeros((ROWS, CHUNKS, row_tree.LANES), tl.int64) + n
    for step in range(0, STEPS, UNROLL):
        for turn in tl.static_range(UNROLL):
            i = first + (step + turn) * row_tree.LANES
            at = begin + row_tree.element_offset(
                i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
            )
            inside = row_tree.inside(first, step + turn, n, FULL)
            value = functions.widened(row_tree.load(at, there & inside, 0.0, WHOLE))
            equal = (value == extremum) | ((value != value) & (extremum != extremum))
            found = tl.minimum(found, tl.where(equal & inside, i, n))
    tl.store(out + span.to(tl.int64) * rows + row, tl.min(tl.min(found, 2), 1), mask=row < rows)


def run(
    x: torch.Tensor,
    view: RowView,
    kind: str,
    *,
    element: str = "itself",
    finish: str = "none",
    power: float = 0.0,
    number: float = 0.0,
    shifts: torch.Tensor | None = None,
    keep_wide: bool = False,
) -> torch.Tensor:
    """[rows] of x, walked as `view`, in x's dtype or, to be used further on, in that of the computation.

    kind: how elements combine: "sum", "prod", "max" or "min".
    element, finish: what enters the tree and what becomes of its root; `power`, `number` and `shifts`,
    [rows] in
        the dtype of the computation, are what these take besides.
    """
    rows = view.rows
    wide = acc_dtype(x.dtype)
    out = x.new_empty(rows, dtype=wide if keep_wide else x.dtype)
    if rows == 0:
        return out
    given = x if shifts is None else shifts
    key = (x.device.index, x.dtype, out.dtype, view, kind, element, finish, power, number, shifts is not None)
    *parts, last = _launches(*key)
    for launch, count in parts:
        found = x.new_empty((count, rows), dtype=wide)
        launch(x, given, found)
        x = found
    last[0](x, given, out)
    return out


@functools.lru_cache(maxsize=4096)
def _launches(
    device: int,
    dtype: torch.dtype,
    out: torch.dtype,
    view: RowView,
    kind: str,
    element: str,
    finish: str,
    power: float,
    number: float,
    shifted: bool,
) -> list[tuple[Launch, int]]:
    """What is launched one after the other, and how many parts of each row come out of it."""
    rows = view.rows
    blocks = Blocks.for_spans(view, size=dtype.itemsize, most_chunks=_SPAN_CHUNKS)
    spans = max(1, -(-view.n // (blocks.CHUNKS * row_tree.CHUNK.value)))
    arguments = {
        "rows": rows, "n": view.n, "power": power, "number": number, "KIND": kind, "ELEMENT": element,
        "FINISH": finish if spans == 1 else "none",
        **view.arguments(), **blocks.arguments(_reduce), **COMPILATION,
    }  # fmt: skip
    found = [(Launch(_reduce, (triton.cdiv(rows, blocks.ROWS), spans), arguments), spans)]
    while spans > 1:
        leaves = min(power_of_two(spans), _LEAVES)
        groups = triton.cdiv(spans, leaves)
        block_rows = min(power_of_two(rows), max(1, 1024 // leaves))
        arguments = {
            "rows": rows, "count": spans, "number": number, "KIND": kind, "SHIFTED": shifted,
            "FINISH": finish if groups == 1 else "none", "ROWS": block_rows, "LEAVES": leaves, **COMPILATION,
        }  # fmt: skip
        found.append((Launch(_combine, (triton.cdiv(rows, block_rows), groups), arguments), groups))
        spans = groups
    return found


def _viewed(x: torch.Tensor, dims: Dims, keepdim: bool) -> tuple[torch.Tensor, RowView, list[int]]:
    return *as_rows(x, wrap_dims(x, dims)), reduced_shape(x, dims, keepdim)


def _check_not_empty(op: str, x: torch.Tensor, dims: Dims) -> None:
    for d in wrap_dims(x, dims):
        if x.shape[d] == 0:
            raise IndexError(f"{op}(): Expected reduction dim {d} to have non-zero size.")


@implements("sum")
def sum(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    x, view, shape = _viewed(x, dims, keepdim)
    return run(x, view, "sum").view(shape)


@implements("prod")
def prod(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    x, view, shape = _viewed(x, dims, keepdim)
    return run(x, view, "prod").view(shape)


@implements("amax")
def amax(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    _check_not_empty("amax", x, dims)
    x, view, shape = _viewed(x, dims, keepdim)
    return run(x, view, "max").view(shape)


@implements("amin")
def amin(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    _check_not_empty("amin", x, dims)
    x, view, shape = _viewed(x, dims, keepdim)
    return run(x, view, "min").view(shape)


@implements("mean")
def mean(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    x, view, shape = _viewed(x, dims, keepdim)
    return run(x, view, "sum", finish="quotient", number=view.n).view(shape)


@implements("var_mean")
def var_mean(
    x: torch.Tensor, dims: Dims, correction: float, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    x, view, shape = _viewed(x, dims, keepdim)
    means = run(x, view, "sum", finish="quotient", number=view.n, keep_wide=True)
    freedom = max(0.0, view.n - correction)
    found = run(x, view, "sum", element="deviation", finish="quotient", number=freedom, shifts=means)
    # Through where: a conversion alone gives NaNs of other payloads.
    narrow = torch.where(means.isnan(), torch.nan, means.to(x.dtype))
    return found.view(shape), narrow.view(shape)


@implements("var")
def var(x: torch.Tensor, dims: Dims, correction: float, keepdim: bool) -> torch.Tensor:
    return var_mean(x, dims, correction, keepdim)[0]


@implements("norm")
def norm(x: torch.Tensor, ord: float, dims: Dims, keepdim: bool) -> torch.Tensor:
    if ord < 0 or math.isinf(ord):
        _check_not_empty("norm", x, dims)
    x, view, shape = _viewed(x, dims, keepdim)
    kind, element, finish = parts_of_norm(ord)
    numbers = {"power": ord, "number": 1 / ord} if element == "power" else {}
    return run(x, view, kind, element=element, finish=finish, **numbers).view(shape)


def parts_of_norm(ord: float) -> tuple[str, str, str]:
    """How elements combine, what of them enters the tree and what becomes of its root: for `run`."""
    if math.isinf(ord):
        return "max" if ord > 0 else "min", "magnitude", "none"
    special = {0.0: ("nonzero", "none"), 1.0: ("magnitude", "none"), 2.0: ("square", "root")}
    return "sum", *special.get(ord, ("power", "power"))


@implements("logsumexp")
def logsumexp(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    x, view, shape = _viewed(x, dims, keepdim)
    # An infinite maximum would make inf - inf of itself; the sum is then inf or 0 without any shift.
    shifts = run(x, view, "max", finish="finite", keep_wide=True)
    return run(x, view, "sum", element="exponential", finish="logarithm", shifts=shifts).view(shape)


def _index_of(x: torch.Tensor, dims: Dims, keepdim: bool, kind: str) -> torch.Tensor:
    _check_not_empty(f"arg{kind}", x, dims)
    x, view, shape = _viewed(x, dims, keepdim)
    extrema = run(x, view, kind, keep_wide=True)
    blocks = Blocks.for_spans(view, size=8, most_chunks=_SPAN_CHUNKS // 2)
    spans = max(1, -(-view.n // (blocks.CHUNKS * row_tree.CHUNK.value)))
    found = torch.empty(spans, view.rows, dtype=torch.int64, device=x.device)
    if view.rows:
        _first_equal[(triton.cdiv(view.rows, blocks.ROWS), spans)](
            x, extrema, found, view.rows, view.n, **view.arguments(), **blocks.arguments(_first_equal),
            **COMPILATION,
        )  # fmt: skip
    return (found[0] if spans == 1 else found.amin(0)).view(shape)


@implements("argmax")
def argmax(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    return _index_of(x, dims, keepdim, "max")


@implements("argmin")
def argmin(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
    return _index_of(x, dims, keepdim, "min")
