"""topk on CUDA devices: the beginning of PyTorch's stable sort, which moves values and rounds none."""

import torch

from bi_compile.templates.registry import implements


@implements("topk")
def topk(x: torch.Tensor, k: int, dim: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if not 0 <= k <= (x.shape[dim] if x.dim() else 1):
        raise RuntimeError("selected index k out of range")
    if x.dim() == 0:
        return x.clone(), torch.zeros((), dtype=torch.int64, device=x.device)
    keys = x
    if x.is_floating_point():
        # One zero and one NaN: a sort by digits would tell their kinds apart.
        keys = torch.where(x.isnan(), torch.nan, x + 0.0)
    order = torch.sort(keys, dim=dim, descending=largest, stable=True).indices
    indices = order.narrow(dim, 0, k).contiguous()
    return x.gather(dim, indices), indices
