"""Interpolation: gradients of all modes, and resizing with antialiasing.

Every output along a dim reads a few inputs, its taps, each with a weight. The gradient goes back along one
dim after the other, last first: `bi_compile::scatter_reduce` adds up tap after tap, each in the order of the
outputs. With antialiasing the taps of an output are a row of `bi_compile::sum`; their weights are computed in
fp64 and follow ATen's UpSampleKernel.cpp. All in fp32 (fp64 for fp64), rounded once. The other forwards are
PyTorch's own decompositions, which choose no order.

PyTorch takes `interpolate` apart above autograd where a graph is traced, and has gradients of the pieces. The
one here keeps it whole until then, so that graphs and eager mode have one gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from bi_compile.passes.grid_sampling import cubic_weights
from bi_compile.passes.rewrite import Rewrite, is_floating, opmath
from bi_compile.templates import reduction as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


@dataclass(frozen=True)
class _Taps:
    """What the outputs along a dim read. index: [outputs, taps]; weight: the same, or None for 1."""

    index: Tensor
    weight: Tensor | None


Mode = Callable[[Any, Any, bool, float | None, Tensor], _Taps]
"""Size of the input and of the output, align_corners, scale factor, and a tensor of the dtype and device."""


def _scale(size: Any, outputs: Any, align: bool, factor: float | None) -> Any:
    if align:
        return (size - 1.0) / (outputs - 1.0) if outputs > 1 else 0.0
    return 1.0 / factor if factor is not None and factor > 0 else size / outputs


def _source(size: Any, outputs: Any, align: bool, factor: float | None, like: Tensor) -> Tensor:
    place = torch.arange(outputs, device=like.device).to(like.dtype)
    scale = _scale(size, outputs, align, factor)
    return scale * place if align else scale * (place + 0.5) - 0.5


def _nearest(offset: float) -> Mode:
    def taps(size: Any, outputs: Any, _align: bool, factor: float | None, like: Tensor) -> _Taps:
        scale = size / (size * factor) if factor is not None and factor > 0 else size / outputs
        place = torch.arange(outputs, device=like.device).to(torch.float32)
        return _Taps(((place + offset) * scale).long().unsqueeze(1), None)

    return taps


def _linear(size: Any, outputs: Any, align: bool, factor: float | None, like: Tensor) -> _Taps:
    at = _source(size, outputs, align, factor, like).clamp(min=0.0)
    low = at.long()
    t = (at - low).clamp(0.0, 1.0)
    return _Taps(torch.stack([low, (low + 1).clamp(max=size - 1)], 1), torch.stack([1 - t, t], 1))


def _cubic(size: Any, outputs: Any, align: bool, factor: float | None, like: Tensor) -> _Taps:
    at = _source(size, outputs, align, factor, like)
    low = at.floor()
    weights = [weight for weight, _slope in cubic_weights((at - low).clamp(0.0, 1.0))]
    index = [(low.long() + i).clamp(0, size - 1) for i in (-1, 0, 1, 2)]
    return _Taps(torch.stack(index, 1), torch.stack(weights, 1))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _smooth(x: Tensor) -> Tensor:
    """The cubic kernel with -0.5, which antialiasing uses."""
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _antialiased(kernel: Callable[[Tensor], Tensor], reach: float) -> Mode:
    def taps(size: Any, outputs: Any, align: bool, factor: float | None, like: Tensor) -> _Taps:
        size, outputs = int(size), int(outputs)
        scale = _scale(size, outputs, align, factor)
        stretch = max(scale, 1.0)
        count = min(2 * math.ceil(reach * stretch) + 1, size)
        center = (torch.arange(outputs, device=like.device).double() + 0.5) * scale
        first = (center - reach * stretch + 0.5).long().clamp(min=0)
        end = (center + reach * stretch + 0.5).long().clamp(max=size)
        place = first.unsqueeze(1) + torch.arange(count, device=like.device)
        weight = kernel((place - center.unsqueeze(1) + 0.5) / stretch)
        weight = torch.where(place < end.unsqueeze(1), weight, 0.0)
        weight = weight / weight.sum(1, keepdim=True)
        return _Taps(place.clamp(max=size - 1), weight.to(like.dtype))

    return taps


def _along(weight: Tensor, x: Tensor, dim: int) -> Tensor:
    return weight.reshape(*weight.shape, *[1] * (x.dim() - 1 - dim))


def _resized(x: Tensor, dim: int, taps: _Taps) -> Tensor:
    read = x.index_select(dim, taps.index.flatten()).unflatten(dim, taps.index.shape)
    assert taps.weight is not None
    weight = _along(taps.weight, x, dim)
    # What lies outside a kernel is not read: it may be infinite.
    return bi.sum(torch.where(weight == 0, 0, read * weight), [dim + 1], False)


def _sent_back(grad: Tensor, dim: int, taps: _Taps, size: Any) -> Tensor:
    shares = [grad]
    if taps.weight is not None:
        weights = [_along(w, grad, dim) for w in taps.weight.unbind(1)]
        shares = [torch.where(w == 0, 0, grad * w) for w in weights]
    shape = list(grad.shape)
    shape[dim] = size
    return grad.new_zeros(shape).index_add(dim, taps.index.t().flatten(), torch.cat(shares, dim))


_MODES: dict[str, tuple[Mode, bool]] = {
    **{f"upsample_nearest{d}d": (_nearest(0.0), False) for d in (1, 2, 3)},
    **{f"_upsample_nearest_exact{d}d": (_nearest(0.5), False) for d in (1, 2, 3)},
    **{f"upsample_{name}": (_linear, True) for name in ("linear1d", "bilinear2d", "trilinear3d")},
    "upsample_bicubic2d": (_cubic, True),
    "_upsample_bilinear2d_aa": (_antialiased(_triangle, 1.0), True),
    "_upsample_bicubic2d_aa": (_antialiased(_smooth, 2.0), True),
}
"""Name in ATen -> its taps, and whether it takes align_corners."""


def _parts(rest: Sequence[Any], dims: int, aligns: bool) -> tuple[bool, list[float | None]]:
    """align_corners and the scale factors, of the arguments behind the sizes."""
    align, factors = (bool(rest[0]), list(rest[1:])) if aligns else (False, list(rest))
    return align, factors + [None] * (dims - len(factors))


def _gradient_of(mode: Mode, aligns: bool) -> Callable[..., Any]:
    def build(grad: Tensor, outputs: Sequence[Any], sizes: Sequence[Any], *rest: Any) -> Any:
        if not is_floating(grad):
            return NotImplemented
        align, factors = _parts(rest, len(outputs), aligns)
        total = opmath(grad)
        for i in reversed(range(len(outputs))):
            taps = mode(sizes[i + 2], outputs[i], align, factors[i], total)
            total = _sent_back(total, i + 2, taps, sizes[i + 2])
        return total.to(grad.dtype)

    return build


def _forward_of(mode: Mode) -> Callable[..., Any]:
    def build(x: Tensor, outputs: Sequence[Any], *rest: Any) -> Any:
        if not is_floating(x):
            return NotImplemented
        align, factors = _parts(rest, len(outputs), True)
        total = opmath(x)
        for i in reversed(range(len(outputs))):
            total = _resized(total, i + 2, mode(x.shape[i + 2], outputs[i], align, factors[i], total))
        return total.to(x.dtype)

    return build


class _Whole(torch.autograd.Function):
    """An interpolation as one op with one gradient, whichever pieces the host would make of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, outputs: Any, rest: Any) -> Tensor:
        ctx.name, ctx.outputs, ctx.rest, ctx.sizes = name, outputs, rest, x.shape
        return getattr(aten, name).default(x, outputs, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gradient = getattr(aten, f"{ctx.name}_backward").default
        return gradient(grads[0], ctx.outputs, ctx.sizes, *ctx.rest), None, None, None


_NAMES = {
    **{("nearest", dims, False): f"upsample_nearest{dims}d" for dims in (1, 2, 3)},
    **{("nearest-exact", dims, False): f"_upsample_nearest_exact{dims}d" for dims in (1, 2, 3)},
    ("linear", 1, False): "upsample_linear1d",
    ("bilinear", 2, False): "upsample_bilinear2d",
    ("trilinear", 3, False): "upsample_trilinear3d",
    ("bicubic", 2, False): "upsample_bicubic2d",
    ("bilinear", 2, True): "_upsample_bilinear2d_aa",
    ("bicubic", 2, True): "_upsample_bicubic2d_aa",
}
"""Mode, number of spatial dims and antialias -> name in ATen."""


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """That of torch.nn.functional, with one gradient. Wrong calls and averages ("area") are left to it."""
    name, dims = _NAMES.get((mode, input.dim() - 2, antialias)), input.dim() - 2
    given = list(v) if isinstance(v := scale_factor if size is None else size, Sequence) else [v] * dims
    if (
        name is None
        or (size is None) == (scale_factor is None)
        or len(given) != dims
        or (size is not None and recompute_scale_factor)
        or (align_corners is not None and not _MODES[name][1])
    ):
        return F.interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    factors: list[Any] = [None] * dims
    if size is None:
        factors = factors if recompute_scale_factor else given
        given = [torch.sym_int(n * f) for n, f in zip(input.shape[2:], given, strict=True)]
    align = (bool(align_corners),) if _MODES[name][1] else ()
    return _Whole.apply(input, name, given, (*align, *factors))


REWRITES = (
    *(
        Rewrite(getattr(aten, f"{name}_backward").default, _gradient_of(*mode))
        for name, mode in _MODES.items()
    ),
    *(
        Rewrite(getattr(aten, name).default, _forward_of(mode))
        for name, (mode, _aligns) in _MODES.items()
        if name.endswith("_aa")
    ),
)
