"""Convolutions and their gradients -> one order of summation over a window, or over batch and positions."""

from collections.abc import Sequence
from typing import Any

import torch

from bi_compile.passes.rewrite import is_floating, rewrite
from bi_compile.templates import contraction as _contraction  # noqa: F401  (defines the ops)
from bi_compile.templates import convolution as _convolution  # noqa: F401
from bi_compile.templates import reduction as _reduction  # noqa: F401

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


def _each(values: Sequence[Any], x: Tensor) -> list[Any]:
    """One value a spatial dimension of x: one alone stands for all."""
    return list(values) * (x.dim() - 2) if len(values) == 1 else list(values)


@rewrite(aten.convolution.default, aten.convolution_overrideable.default, aten._convolution.default)
def _forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    transposed: bool,
    output_padding: Sequence[Any],
    groups: Any,
    *hints: bool,  # for other hosts' kernels
) -> Any:
    if not is_floating(x):
        return NotImplemented
    lists = (_each(v, x) for v in (stride, padding, dilation))
    return bi.convolution(x, w, bias, *lists, transposed, _each(output_padding, x), groups)


@rewrite(aten.convolution_backward.default, aten.convolution_backward_overrideable.default)
def _backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    *arguments: Any,
) -> Any:
    # The second op has no sizes of a bias.
    *_, stride, padding, dilation, transposed, _, groups, mask = arguments
    if not is_floating(x):
        return NotImplemented
    stride, padding, dilation = (_each(v, x) for v in (stride, padding, dilation))
    needs_x, needs_w, needs_bias = mask
    # The gradient of the input is the convolution the other way round, by the same weights.
    grad_x = grad_w = grad_bias = None
    if needs_x:
        extra = [0] * len(stride) if transposed else _left_over(x, grad, w, stride, padding, dilation)
        grad_x = bi.convolution(grad, w, None, stride, padding, dilation, not transposed, extra, groups)
        grad_x = _cut(grad_x, x)
    if needs_w:
        fixed, moving = (x, grad) if transposed else (grad, x)
        grad_w = _grad_weight(fixed, moving, w, stride, padding, dilation, groups)
    if needs_bias:
        grad_bias = bi.sum(grad, [0, *range(2, grad.dim())], False)
    return grad_x, grad_w, grad_bias


def _left_over(x: Tensor, grad: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any) -> list[Any]:
    """The elements at the end of each dimension of x that no window of a convolution reached."""
    return [
        x.shape[d + 2] + 2 * p - dil * (w.shape[d + 2] - 1) - 1 - (grad.shape[d + 2] - 1) * s
        for d, (s, p, dil) in enumerate(zip(stride, padding, dilation, strict=True))
    ]


def _cut(found: Tensor, like: Tensor) -> Tensor:
    """A large output_padding lets more windows fit than there are elements."""
    for d in range(2, found.dim()):
        found = found.narrow(d, 0, like.shape[d])
    return found


def _grad_weight(
    fixed: Tensor, moving: Tensor, w: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor:
    """Of each tap: the sum over (batch, positions), in this order, of `fixed` times the windows of `moving`.

    One contraction for each group: [channels of fixed, batch x positions] x [the same, channels x taps].
    """
    dims = w.dim() - 2
    windows = aten.constant_pad_nd(moving, [p for pad in reversed(padding) for p in (pad, pad)])
    for d, (s, dil) in enumerate(zip(stride, dilation, strict=True)):
        span = dil * (w.shape[d + 2] - 1) + 1
        windows = windows.unfold(d + 2, span, s).narrow(d + 2, 0, fixed.shape[d + 2])[..., ::dil]
    # [N, C, *positions, *taps] -> [groups, N * positions, C / groups * taps]
    positions, taps = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    windows = windows.permute(0, *positions, 1, *taps).reshape(-1, groups, w.shape[1:].numel())
    rows = fixed.permute(1, 0, *positions).reshape(groups, w.shape[0] // groups, -1)
    return bi.bmm(rows, windows.transpose(0, 1)).reshape(w.shape)


REWRITES = (*_forward, *_backward)
