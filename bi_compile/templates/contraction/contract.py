"""Products of matrices with one order of summation.

Ops (fp32, fp64, bf16, fp16; one dtype for all tensors of a call; any strides, 0 and overlaps among them)
    bi_compile::mm(Tensor a, Tensor b) -> Tensor
        [M, K] x [K, N] -> [M, N]
    bi_compile::bmm(Tensor a, Tensor b) -> Tensor
        [B, M, K] x [B, K, N] -> [B, M, N]
    bi_compile::addmm(Tensor c, Tensor a, Tensor b, *, Scalar beta=1, Scalar alpha=1) -> Tensor
        beta * c + alpha * (a x b), c broadcastable to [M, N]; c is not read when beta is 0
    bi_compile::baddbmm(Tensor c, Tensor a, Tensor b, *, Scalar beta=1, Scalar alpha=1) -> Tensor
        the same for batches
    bi_compile::linear(Tensor x, Tensor w, Tensor? bias) -> Tensor
        [*, K] x [N, K] + [N] -> [*, N]; the bits of addmm with alpha = beta = 1

The tree of one output element, whatever M, N, B, strides, threads and instruction set
    1. K is cut into chunks of `numerics.CONTRACTION_CHUNK`, from k = 0. Inside a chunk one chain runs in
       index order from +0: sum = step(sum, a[k], b[k]).
       fp32, fp64: step is one fused multiply-add, fma(a, b, sum), rounded to nearest even, subnormals kept.
       fp16: the same in fp32 on the widened elements.
       bf16: step is an fp32 fma rounded to nearest even in which subnormal operands count as zero and a
       subnormal result becomes zero, both keeping their sign; a result is subnormal if it is below 2**-126
       after rounding to 24 bits with an exponent without limits. A process has one of two orders, that of
       `bf16_order()`:
       "tiles": the chunk is cut into 32 elements at a time, missing ones being 0. From +0 one chain runs over
           the elements 0, 2, ..., 30 and one over 1, 3, ..., 31. Their sum is added to the sum so far, which
           begins with +0: sum = sum + (even + odd), both additions with subnormals taken as zero as in step.
           This is the instruction TDPBF16PS of Intel AMX.
       "pairs": one chain over pairs (2i, 2i + 1), a missing last element being 0, the odd element before the
           even one: sum = step(step(sum, a[2i+1], b[2i+1]), a[2i], b[2i]). This is the instruction VDPBF16PS
           of AVX-512 machines with bf16.
       The machine's own order is "tiles" where the processor has AMX tiles with bf16 and the operating system
       lets programs use them, and "pairs" everywhere else; the environment variable BI_COMPILE_BF16_ORDER
       chooses one for equal bits on different machines. Without the instruction, FMA on x86 with FTZ and DAZ
       set, or software, computes the same bits. ("pairs" was compared on AMD Zen 4 and on an Intel Xeon with
       AMX, "tiles" on the latter, on random, cancelling, subnormal and non-finite data.)
    2. The sums of the chunks are the leaves of the balanced tree of `numerics.tree_levels`, added in fp32
       (fp64 for fp64) with subnormals kept.
    3. t = alpha * t unless alpha is 1; then t + beta * c, with c widened and beta multiplied unless it is 1.
       Each operation rounds in fp32 (fp64). K = 0 has t = 0.
    4. One rounding to the dtype. Every NaN is the same quiet NaN.

On CUDA devices the tree is another one, whatever M, N, B, strides and configuration: that of
`numerics.CONTRACTION_GPU_CHUNK`, in the tensor core's arithmetic, followed by steps 3 and 4; see
`gpu_oracle.py`. fp32 is never rounded to tf32, whatever `torch.backends` says: it has the three tf32 products
there.

A product with a zero in it is computed like any other, so 0 x NaN and 0 x inf are NaN, as in eager.
Raises UnsupportedDtypeError for other dtypes, integers among them (their sums have no order to fix).
"""

from collections.abc import Callable
from typing import Any

import torch

import bi_compile.templates.reduction  # noqa: F401  (defines the sum of gradients)
from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.registry import define, load

Tensor = torch.Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def bf16_order() -> str:
    """The order of bf16 products in this process: one of `numerics.BF16_ORDERS`.

    It is the machine's, or the one that the environment variable BI_COMPILE_BF16_ORDER names.
    """
    load("contraction")
    return torch.ops.bi_compile.bf16_order()


def check_dtypes(name: str, *tensors: Tensor | None) -> None:
    """Raise UnsupportedDtypeError for a dtype without an order, RuntimeError where tensors have several."""
    dtypes = [t.dtype for t in tensors if t is not None]
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UnsupportedDtypeError(name, str(dtype), map(str, DTYPES))
    torch._check(
        len(set(dtypes)) == 1, lambda: f"{name}: expected one dtype, got {', '.join(map(str, dtypes))}"
    )


def _fake_mm(a: Tensor, b: Tensor) -> Tensor:
    return _fake_product("mm", 2, a, b)


def _fake_bmm(a: Tensor, b: Tensor) -> Tensor:
    return _fake_product("bmm", 3, a, b)


def _fake_addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _fake_product("addmm", 2, a, b, c)


def _fake_baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _fake_product("baddbmm", 3, a, b, c)


def _fake_product(name: str, dim: int, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    check_dtypes(name, a, b, c)
    torch._check(
        a.dim() == dim and b.dim() == dim,
        lambda: f"{name}: expected {dim}-D tensors, got {a.dim()}-D and {b.dim()}-D",
    )
    message = _cannot_multiply(name, a, b)
    torch._check(a.shape[-1] == b.shape[-2], message)
    if dim == 3:
        torch._check(a.shape[0] == b.shape[0], message)
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def _fake_linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    check_dtypes("linear", x, w, bias)
    torch._check(
        x.dim() >= 1 and w.dim() == 2,
        lambda: f"linear: expected x of at least 1-D and a 2-D w, got {x.dim()}-D and {w.dim()}-D",
    )
    torch._check(x.shape[-1] == w.shape[1], _cannot_multiply("linear", x, w))
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _cannot_multiply(name: str, a: Tensor, b: Tensor) -> Callable[[], str]:
    return lambda: f"{name}: shapes {list(a.shape)} and {list(b.shape)} cannot be multiplied"


_mm = define("mm(Tensor a, Tensor b) -> Tensor", family="contraction", fake=_fake_mm)
_bmm = define("bmm(Tensor a, Tensor b) -> Tensor", family="contraction", fake=_fake_bmm)
_addmm = define(
    "addmm(Tensor c, Tensor a, Tensor b, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    family="contraction",
    fake=_fake_addmm,
)
_baddbmm = define(
    "baddbmm(Tensor c, Tensor a, Tensor b, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    family="contraction",
    fake=_fake_baddbmm,
)
_linear = define(
    "linear(Tensor x, Tensor w, Tensor? bias) -> Tensor", family="contraction", fake=_fake_linear
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return _linear(x, w, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, w.shape[0]) if grad.dim() != 2 else grad
        grad_x = linear(grad, w.t()) if needs_x else None
        grad_w = mm(rows.t(), x.reshape(-1, w.shape[1]) if x.dim() != 2 else x) if needs_w else None
        grad_bias = torch.ops.bi_compile.sum(rows, [0], False) if needs_bias else None
        return grad_x, grad_w, grad_bias


class _MatrixProduct(torch.autograd.Function):
    """mm and bmm: the products of the last two dimensions."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _mm(a, b) if a.dim() == 2 else _bmm(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad
        grad_a = _MatrixProduct.apply(grad, b.mT) if needs_a else None
        grad_b = _MatrixProduct.apply(a.mT, grad) if needs_b else None
        return grad_a, grad_b


class _AddedProduct(torch.autograd.Function):
    """addmm and baddbmm."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.addend, ctx.scales = c.shape, (beta, alpha)
        op = _addmm if a.dim() == 2 else _baddbmm
        return op(c, a, b, beta=beta, alpha=alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        beta, alpha = ctx.scales
        needs_c, needs_a, needs_b, *_ = ctx.needs_input_grad
        grad_c = _sum_to(grad, ctx.addend) * beta if needs_c else None
        grad_a = _MatrixProduct.apply(grad, b.mT) * alpha if needs_a else None
        grad_b = _MatrixProduct.apply(a.mT, grad) * alpha if needs_b else None
        return grad_c, grad_a, grad_b, None, None


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of an operand that was broadcast to grad's shape."""
    leading = grad.dim() - len(shape)
    dims = [d for d in range(grad.dim()) if d < leading or (shape[d - leading] == 1 and grad.shape[d] != 1)]
    if dims:
        grad = torch.ops.bi_compile.sum(grad, dims, True)
    return grad.reshape(shape)


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [*, K] times w [N, K] transposed, plus bias [N], with gradients. The tree stands above."""
    check_dtypes("linear", x, w, bias)
    return _Linear.apply(x, w, bias)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """[M, K] x [K, N] with gradients."""
    check_dtypes("mm", a, b)
    return _MatrixProduct.apply(a, b)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, K] x [B, K, N] with gradients."""
    check_dtypes("bmm", a, b)
    return _MatrixProduct.apply(a, b)


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """beta * c + alpha * (a x b) with gradients; c is broadcastable to [M, N]."""
    check_dtypes("addmm", c, a, b)
    return _AddedProduct.apply(c, a, b, beta, alpha)


def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """The same for a batch; c is broadcastable to [B, M, N]."""
    check_dtypes("baddbmm", c, a, b)
    return _AddedProduct.apply(c, a, b, beta, alpha)
