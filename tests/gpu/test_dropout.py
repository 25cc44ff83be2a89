"""Dropout on a CUDA device: the mask of the CPU, and a sample loses the same whatever its batch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bi_compile.templates.dropout import dropout_mask, oracle
from tests.bits import assert_same_bits, same_bits

PER_SAMPLE: dict[str, Any] = {"dropout": "per_sample"}
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SIZES = (1, 2, 3, 4, 7, 8, 16, 33)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_the_mask_is_that_of_the_cpu(dtype):
    x, seed = torch.randn(6, 8, 33).to(dtype), torch.tensor([12345678901234567])
    for layout in (x, x.transpose(0, 2).contiguous().transpose(0, 2), x[:, ::2]):
        for dim, rows in ((0, 1), (0, 3), (1, 2), (0, 0)):
            expected = oracle.dropout_mask(layout, seed, 0.4, dim, rows)
            found = dropout_mask(layout.cuda(), seed.cuda(), 0.4, dim, rows)
            assert torch.equal(found.cpu(), expected), (dim, rows)


class Block(nn.Module):
    """A layer with dropout of activations and of a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        h = F.dropout(F.gelu(self.up(self.norm(x))), 0.2)
        return x + F.dropout(self.down(h), 0.1)


def step(run, x):
    """The outputs of each sample and the gradients of its inputs, of the sum of a loss of each."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    y = run(x)
    y.float().square().sum((1, 2)).sum().backward()
    return torch.cat([y.detach(), x.grad], -1)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_sample_loses_the_same_in_every_batch(dtype):
    torch.compiler.reset()
    model, x = Block().cuda().to(dtype), torch.randn(33, 5, 32, device="cuda").to(dtype)
    ours = torch.compile(model, backend="batch_invariant", options=PER_SAMPLE)
    whole = step(ours, x)
    for size in SIZES:
        members = torch.randperm(33)[:size].cuda()
        assert_same_bits(step(ours, x[members]), whole[members], f"{size} samples")
    torch.manual_seed(1)
    assert not same_bits(ours(x), whole[..., :32]), "another seed loses others"
    # Control: with stock dropout a sample's noise is that of its place.
    assert not same_bits(step(model, x[[4]]), step(model, x)[[4]])


def test_what_survives_is_scaled_and_the_noise_looks_like_noise():
    torch.compiler.reset()
    p, (samples, n) = 0.25, (512, 1024)
    ours = torch.compile(
        lambda x: (F.dropout(x, p), F.dropout(x, p)), backend="batch_invariant", options=PER_SAMPLE
    )
    x = torch.randn(samples, n, device="cuda")
    x[1:] = x[0] + torch.arange(1, samples, device="cuda")[:, None] * 2.0**-20  # nearly the same sample
    first, second = ours(x)
    lost, other = first == 0, second == 0
    torch.testing.assert_close(first[~lost], x[~lost] / (1 - p))
    deviation = (p * (1 - p)) ** 0.5
    for dims, count in (((0, 1), samples * n), ((0,), samples), ((1,), n)):
        assert (lost.double().mean(dims) - p).abs().max() / (deviation / count**0.5) < 5
    for a, b in ((lost[:, 1:], lost[:, :-1]), (lost[1:], lost[:-1]), (lost, other)):
        correlation = ((a.double() - p) * (b.double() - p)).mean() / deviation**2
        assert abs(correlation) * a.numel() ** 0.5 < 5
