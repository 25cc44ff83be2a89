"""Numbers at equal distances (linspace, arange of fractions) -> one formula in fp64, rounded at the end.

Eager PyTorch steps from vector to vector, and generated code multiplies in the dtype of the result: the two
differ in the last bit of most elements. Here element i of `arange` is start + i * step, and `linspace` counts
from the nearer end, so that both ends are exact. Integers need no rounding and stay as they are.
"""

import math
from typing import Any

import torch

from bi_compile.passes.rewrite import FLOATING, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor
Dtype = torch.dtype | None


def _places(count: Any, device: Any) -> Tensor:
    return torch.arange(count, device=device).to(torch.float64)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in dtype; by way of fp32 where hosts disagree about a direct conversion."""
    return (x.to(torch.float32) if dtype in (torch.bfloat16, torch.float16) else x).to(dtype)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float | torch.SymFloat)


_ENDS = "default", "Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor"


@rewrite(aten.arange.start_step)
def _arange_step(
    start: Any, end: Any, step: Any = 1, *, dtype: Dtype = None, device: Any = None, **_options: Any
) -> Any:
    fractions = any(map(_is_fraction, (start, end, step)))
    dtype = torch.get_default_dtype() if dtype is None and fractions else dtype
    if dtype not in FLOATING:
        return NotImplemented
    count = math.ceil((end - start) / step) if fractions else -((start - end) // step)
    return _rounded(_places(count, device) * step + start, dtype)


@rewrite(aten.arange.start)
def _arange_start(start: Any, end: Any, **options: Any) -> Any:
    return aten.arange.start_step(start, end, 1, **options)


@rewrite(aten.arange.default)
def _arange(end: Any, **options: Any) -> Any:
    return aten.arange.start_step(0, end, 1, **options)


@rewrite(*(getattr(aten.linspace, overload) for overload in _ENDS))
def _linspace(
    start: Any, end: Any, steps: Any, *, dtype: Dtype = None, device: Any = None, **_options: Any
) -> Any:
    dtype = dtype or torch.get_default_dtype()
    if dtype not in FLOATING:
        return NotImplemented
    start, end = (v.double() if isinstance(v, Tensor) else v for v in (start, end))
    step = (end - start) / torch.sym_max(steps - 1, 1)
    forth = _places(steps, device)
    back = steps - 1 - forth
    return _rounded(torch.where(forth < (steps + 1) // 2, forth * step + start, end - back * step), dtype)


REWRITES = (*_arange_step, *_arange_start, *_arange, *_linspace)
