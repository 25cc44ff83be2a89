"""The order of additions, spelled in plain torch ops."""

import torch


def embedding_grad(grad: torch.Tensor, indices: torch.Tensor, rows: int, padding_idx: int) -> torch.Tensor:
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    out = torch.zeros(rows, grad.shape[-1], dtype=wide)
    flat = grad.reshape(-1, grad.shape[-1])
    for i, row in enumerate(indices.reshape(-1).tolist()):
        if row != padding_idx:
            out[row] = out[row] + flat[i].to(wide)
    return out.to(grad.dtype)
