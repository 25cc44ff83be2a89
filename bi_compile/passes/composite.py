"""Functions that stand whole in a graph from Dynamo although they are Python: opened up, with our ops inside.

`multi_head_attention_forward` has a file of its own. `instance_norm` makes channels of its samples and calls
batch_norm in training mode; here every channel of every sample is a row. softshrink is an op, but arrives in
pieces that round. `interpolate` has one gradient; so have functions that call it.
"""

import torch
import torch.nn.functional as F

from bi_compile.passes import interpolation, multi_head_attention
from bi_compile.passes.rebinding import rebound

Tensor = torch.Tensor

_ours = {"interpolate": interpolation.interpolate}


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
    F.multi_head_attention_forward: multi_head_attention.multi_head_attention_forward,
    F.instance_norm: instance_norm,
    F.interpolate: interpolation.interpolate,
    F.upsample: rebound(F.upsample, _ours),
    F.upsample_nearest: rebound(F.upsample_nearest, _ours),
    F.upsample_bilinear: rebound(F.upsample_bilinear, _ours),
    # PyTorch takes it apart above autograd, where no table of decompositions is asked.
    F.softshrink: softshrink,
}
"""Stock function -> our function of the same signature."""
