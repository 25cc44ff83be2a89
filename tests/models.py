"""Small models for tests of the whole path."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A transformer block by hand: attention, layer norm, a hand-written RMS norm, gated MLP, a pooled head.

    Input [B, S, 24], mask [B, S] of booleans (True = token) -> [B, 10].
    """

    def __init__(self, width: int = 24, heads: int = 3, *, graph_break: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.graph_break = graph_break
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.up = nn.Linear(width, 2 * width + 5)
        self.down = nn.Linear(2 * width + 5, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        if self.graph_break:
            torch._dynamo.graph_break()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        hidden = self.up(normed)
        x = x + self.down(F.gelu(hidden) * F.silu(hidden))
        weights = mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * weights).sum(1) / weights.sum(1).clamp(min=1)
        return torch.log_softmax(self.head(pooled), dim=-1)


def block_inputs(
    n: int, length: int = 7, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of `Block`: lengths differ, padding on the right holds large values."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, length, 24, generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (n, 1), generator=generator)
    return torch.where(mask.unsqueeze(-1), x, 1e3).to(dtype), mask
