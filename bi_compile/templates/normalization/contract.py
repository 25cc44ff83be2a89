"""layer_norm and rms_norm: the operations of their formulas, each rounded, with sums by the row tree.

Ops (x: float32, float64, bfloat16 or float16 of any shape and strides; results are contiguous)
    bi_compile::layer_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)
        -> (Tensor, Tensor, Tensor)
        mean = sum(x) / n;  d = x - mean;  rstd = 1 / sqrt(sum(d * d) / n + eps)
        y = (d * rstd) * weight + bias
        y has x's dtype; mean and rstd, of shape [..., 1, ...], are as aten.native_layer_norm returns them on
        a CPU: of x's dtype, or float32 where weight or bias has another dtype than x.
    bi_compile::rms_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, float eps) -> (Tensor, Tensor)
        rstd = 1 / sqrt(sum(x * x) / n + eps);  y = (x * rstd) * weight
        y has x's dtype; rstd is float32 (float64 for float64), as aten._fused_rms_norm returns it.
    bi_compile::added_layer_norm(Tensor x, Tensor more, ...) -> (Tensor, Tensor, Tensor, Tensor)
    bi_compile::added_rms_norm(Tensor x, Tensor more, ...) -> (Tensor, Tensor, Tensor)
        x + more, rounded to their dtype, and the results of its norm: one pass over memory on CUDA devices.
        x and more have one shape and dtype, and no gradients: `passes/residual.py` puts these into final
        graphs.

n is the number of elements of normalized_shape, which are x's last dims. Everything is computed in float32
(float64 for float64), every operation rounded and none fused, so y has the bits of `bi_compile::mean` and
the pointwise operations run one by one in that dtype; one rounding to the output's dtype. The tree is that of
`bi_compile::sum` (see templates/reduction). weight and bias have the shape normalized_shape and any of the
dtypes not wider than that of the computation.
Raises UnsupportedDtypeError for other dtypes and RuntimeError for shapes that do not fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.reduction.shapes import DTYPES, acc_dtype, check_dtype
from bi_compile.templates.registry import define


def _check(op: str, x: torch.Tensor, normalized_shape: Sequence[int], parameters: dict) -> None:
    check_dtype(op, x)
    given = {name: tensor for name, tensor in parameters.items() if tensor is not None}
    supported = [dtype for dtype in DTYPES if dtype.itemsize <= acc_dtype(x.dtype).itemsize]
    for name, tensor in given.items():
        if tensor.dtype not in supported:
            raise UnsupportedDtypeError(
                f"{op} of {x.dtype} with {name}", str(tensor.dtype), map(str, supported)
            )
    rank = len(normalized_shape)
    torch._check(0 < rank <= x.dim(), lambda: f"{op}: normalized_shape {normalized_shape} for {x.dim()} dims")
    shapes = {"the input's last dims": x.shape[x.dim() - rank :]}
    shapes |= {name: tensor.shape for name, tensor in given.items()}
    for name, shape in shapes.items():
        torch._check(
            len(shape) == rank,
            lambda name=name: f"{op}: {name} must have the shape {list(normalized_shape)}",
        )
        for size, wanted in zip(shape, normalized_shape, strict=True):
            torch._check(
                size == wanted,
                lambda name=name: (
                    f"Given normalized_shape={list(normalized_shape)}, {name} must have that shape"
                ),
            )


def _statistics_shape(x: torch.Tensor, normalized_shape: Sequence[int]) -> list:
    rank = len(normalized_shape)
    return [*x.shape[: x.dim() - rank], *[1] * rank]


def _fake_layer_norm(x, normalized_shape, weight, bias, eps):
    _check("layer_norm", x, normalized_shape, {"weight": weight, "bias": bias})
    same = all(t is None or t.dtype == x.dtype for t in (weight, bias))
    dtype = x.dtype if same else acc_dtype(x.dtype)
    shape = _statistics_shape(x, normalized_shape)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


def _fake_rms_norm(x, normalized_shape, weight, eps):
    _check("rms_norm", x, normalized_shape, {"weight": weight})
    shape = _statistics_shape(x, normalized_shape)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=acc_dtype(x.dtype))


def _fake_added(norm: Callable[..., Any]) -> Callable[..., Any]:
    def fake(x: torch.Tensor, more: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        torch._check(
            x.dtype == more.dtype and x.shape == more.shape,
            lambda: f"expected two tensors alike, got {x.dtype} {x.shape} and {more.dtype} {more.shape}",
        )
        return x.new_empty(x.shape), *norm(x, *arguments)

    return fake


def _added(norm: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: torch.Tensor, more: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        total = torch.add(x, more).contiguous()
        return total, *norm(total, *arguments)

    return run


layer_norm_op = define(
    "layer_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    family="normalization",
    fake=_fake_layer_norm,
)
rms_norm_op = define(
    "rms_norm(Tensor x, SymInt[] normalized_shape, Tensor? weight, float eps) -> (Tensor, Tensor)",
    family="normalization",
    fake=_fake_rms_norm,
)
added_layer_norm_op = define(
    "added_layer_norm(Tensor x, Tensor more, SymInt[] normalized_shape, Tensor? weight, Tensor? bias,"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    family="normalization",
    fake=_fake_added(_fake_layer_norm),
    on_cpu=_added(layer_norm_op),
)
added_rms_norm_op = define(
    "added_rms_norm(Tensor x, Tensor more, SymInt[] normalized_shape, Tensor? weight, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    family="normalization",
    fake=_fake_added(_fake_rms_norm),
    on_cpu=_added(rms_norm_op),
)


def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, mean, rstd as the module's docstring defines them."""
    _check("layer_norm", x, normalized_shape, {"weight": weight, "bias": bias})
    return layer_norm_op(x, normalized_shape, weight, bias, eps)


def rms_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, rstd as the module's docstring defines them."""
    _check("rms_norm", x, normalized_shape, {"weight": weight})
    return rms_norm_op(x, normalized_shape, weight, eps)
