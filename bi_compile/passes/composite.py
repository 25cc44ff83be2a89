"""Functions that stand whole in a graph from Dynamo although they are Python: opened up, with our ops inside.

`multi_head_attention_forward` is PyTorch's own code in which `linear` and `scaled_dot_product_attention` are
ours: traced as it is, they would be taken apart by the layout of their inputs. `instance_norm` makes channels
of its samples and calls batch_norm in training mode; here every channel of every sample is a row. softshrink
is an op, but arrives in pieces that round. `interpolate` has one gradient; so have functions that call it.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bi_compile.passes import interpolation

Tensor = torch.Tensor


def _rebound(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """A copy of a Python function in which global names mean something else."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = __name__
    return copy


_ours = {
    "linear": lambda *arguments: torch.ops.bi_compile.differentiable_linear(*arguments),
    "scaled_dot_product_attention": lambda *arguments, **options: (
        torch.ops.bi_compile.differentiable_attention(*arguments, **options)
    ),
    "interpolate": interpolation.interpolate,
    "has_torch_function": lambda tensors: False,
}
_helpers = {
    name: _rebound(getattr(F, name), _ours)
    for name in ("_in_projection", "_in_projection_packed")
    if hasattr(F, name)
}
multi_head_attention_forward = _rebound(F.multi_head_attention_forward, {**_ours, **_helpers})


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """That of torch.nn.functional. With running statistics to update it stays as it is, to be refused."""
    if not use_input_stats or running_mean is not None:
        return torch.instance_norm(
            input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, False
        )
    channels = input.shape[1]
    return F.group_norm(input, channels, weight, bias, eps)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """That of torch.nn.functional, with gradients. Zeros have the sign of the input."""
    wide = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    inner = torch.where(wide < -lambd, wide + lambd, wide.detach() * 0)
    return torch.where(wide > lambd, wide - lambd, inner).to(input.dtype)


COMPOSITES = {
    F.multi_head_attention_forward: multi_head_attention_forward,
    F.instance_norm: instance_norm,
    F.interpolate: interpolation.interpolate,
    F.upsample: _rebound(F.upsample, _ours),
    F.upsample_nearest: _rebound(F.upsample_nearest, _ours),
    F.upsample_bilinear: _rebound(F.upsample_bilinear, _ours),
    # PyTorch takes it apart above autograd, where no table of decompositions is asked.
    F.softshrink: softshrink,
}
"""Stock function -> our function of the same signature."""
