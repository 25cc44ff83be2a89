"""Dropout in training: refused, or by option a function of PyTorch's generator and the sample alone."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.integrations import transformers
from bi_compile.report import LEFT_ALONE, collect
from tests.bits import assert_same_bits, same_bits

PER_SAMPLE: dict[str, Any] = {"dropout": "per_sample"}
MEMBERS = torch.randn(9, 5, 16)


class Block(nn.Module):
    """A layer with dropout of activations, of a residual branch and of the same values twice."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = F.dropout(F.gelu(self.up(self.norm(x))), 0.2)
        y = x + F.dropout(self.down(h), 0.1)
        return torch.cat([F.dropout(y, 0.5), F.dropout(y, 0.5)], -1)


def step(run, x, seed=0):
    """The outputs of each sample and the gradients of its inputs, of the sum of a loss of each."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = run(x)
    y.square().sum((1, 2)).sum().backward()
    return torch.cat([y.detach(), x.grad], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dynamic", [None, False], ids=str)
def test_a_sample_loses_the_same_whatever_its_batch(dtype, dynamic):
    torch.compiler.reset()
    model, members = Block().to(dtype), MEMBERS.to(dtype)
    ours = torch.compile(model, backend="batch_invariant", options=PER_SAMPLE, dynamic=dynamic)
    whole = step(ours, members)
    # A static graph serves one size: other places and neighbours show in batches of all nine.
    others = ([0, 1], [8, 3, 5, 1, 0, 2]) if dynamic is None else ([8, 3, 5, 1, 0, 2, 4, 7, 6], [2] * 9)
    for order in ([4], *others):
        assert_same_bits(step(ours, members[order]), whole[order], f"samples {order}")
    assert not same_bits(step(ours, members, seed=1), whole)
    # Control: with stock dropout a sample's noise is that of its place.
    assert not same_bits(step(model, members[[4]]), step(model, members)[[4]])


def test_what_survives_is_scaled_and_the_same_values_get_new_noise():
    torch.compiler.reset()
    fn = torch.compile(
        lambda x: (F.dropout(x, 0.25), F.dropout(x, 0.25)), backend="batch_invariant", options=PER_SAMPLE
    )
    x = torch.randn(8, 4000)
    first, second = fn(x)
    for y in (first, second):
        kept = y != 0
        assert abs(kept.double().mean() - 0.75) < 0.02
        torch.testing.assert_close(y[kept], x[kept] / 0.75)
    assert ((first == 0) != (second == 0)).double().mean() > 0.3


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends(p):
    torch.compiler.reset()
    fn = torch.compile(lambda x: F.dropout(x, p), backend="batch_invariant", options=PER_SAMPLE)
    assert torch.equal(fn(MEMBERS), MEMBERS * (1 - p))


def test_dropout_of_folded_sequences():
    torch.compiler.reset()
    fn = torch.compile(
        lambda x: F.dropout(x.flatten(0, 1), 0.5).view(-1, 5, 16),
        backend="batch_invariant",
        options=PER_SAMPLE,
    )
    runs = []
    for order in ([0, 1, 2, 3], [3, 1]):
        torch.manual_seed(0)
        runs.append(fn(MEMBERS[order]))
    assert_same_bits(runs[1], runs[0][[3, 1]], "folded")


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.arange(12) < torch.tensor([[5], [12], [0], [9]]).repeat(3, 1)},
    "numbers": {"attn_mask": torch.linspace(-3, 3, 144).view(12, 12)},
    "the lowest number": {"attn_mask": torch.ones(12, 12).triu(-2) * torch.finfo(torch.float32).min},
    "softcap and sinks": {"is_causal": True, "softcap": 2.0},
}


class Attention(nn.Module):
    mask: torch.Tensor | None

    def __init__(self, p, is_causal=False, attn_mask=None, **ours):
        super().__init__()
        self.p, self.is_causal, self.ours = p, is_causal, ours
        self.register_buffer("mask", attn_mask)  # shared by all samples, and known to be
        self.register_buffer("sinks", torch.linspace(-1, 1, 4) if ours else None)

    def forward(self, q, k, v):
        if self.ours:  # what transformers calls after `prepare`
            options = {**self.ours, "s_aux": self.sinks, "dropout": self.p, "is_causal": self.is_causal}
            return transformers.attention(self, q, k, v, self.mask, **options)[0].transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, self.mask, self.p, self.is_causal, enable_gqa=True)


@pytest.mark.parametrize("mask", list(MASKS))
def test_dropout_of_the_weights_of_attention(mask):
    torch.compiler.reset()
    ours = torch.compile(Attention(0.3, **MASKS[mask]), backend="batch_invariant", options=PER_SAMPLE)
    q, k = torch.randn(7, 4, 12, 8), torch.randn(7, 2, 12, 8)
    v = torch.cat([k.flip(-1), torch.ones(7, 2, 12, 1)], -1)
    seeds = range(200)
    runs = torch.stack([torch.manual_seed(seed) and ours(q, k, v) for seed in seeds])
    for order in ([4], [6, 2, 0]):
        torch.manual_seed(3)
        assert_same_bits(ours(q[order], k[order], v[order]), runs[3][order], f"samples {order}")
    # On average nothing is lost: not of the values, nor of the weights, whose sum the last value is.
    # Control: stock attention loses other weights of a sample at another place.
    if "softcap" not in mask:
        stock = [
            torch.manual_seed(3) and Attention(0.3, **MASKS[mask])(q[i], k[i], v[i]) for i in ([4, 6], [6])
        ]
        assert not same_bits(stock[0][1], stock[1][0])
    with bi_compile.eager():
        exact = Attention(0.0, **MASKS[mask]).double()(q.double(), k.double(), v.double())
    error = (runs.double().mean(0) - exact).abs() / (runs.double().std(0) / len(seeds) ** 0.5 + 1e-6)
    assert error.max() < 6


def test_attention_with_dropout_follows_autocast():
    torch.compiler.reset()
    ours = torch.compile(Attention(0.3), backend="batch_invariant", options=PER_SAMPLE)
    q = torch.randn(3, 2, 5, 8)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(q, q, q)
    torch.manual_seed(0)
    assert_same_bits(found, ours(*[q.bfloat16()] * 3), "autocast")


def test_warn_runs_what_could_not_be_placed():
    torch.compiler.reset()
    options: dict[str, Any] = {**PER_SAMPLE, "on_unsupported": "warn"}
    fn, _, _ = REFUSED["samples that lie interleaved"]
    compiled = torch.compile(fn, backend="batch_invariant", options=options)
    with pytest.warns(RuntimeWarning, match="leaves bi_compile.dropout_mask"), collect() as report:
        y = compiled(MEMBERS)
    assert 0.3 < (y == 0).double().mean() < 0.7
    assert any(v.op == "bi_compile.dropout_mask" and v.kind == LEFT_ALONE for v in report.verdicts)


def test_warn_leaves_the_dropout_of_attention_as_it_is():
    torch.compiler.reset()
    fn, _, _ = REFUSED["attention by default"]
    compiled = torch.compile(fn, backend="batch_invariant", options={"on_unsupported": "warn"})
    with pytest.warns(RuntimeWarning, match="rand"):
        y = compiled(MEMBERS)
    assert not same_bits(compiled(MEMBERS), y)  # other numbers each time


def test_the_report_names_the_op():
    torch.compiler.reset()
    fn = torch.compile(lambda x: F.dropout(x, 0.5), backend="batch_invariant", options=PER_SAMPLE)
    with collect() as report:
        fn(MEMBERS)
    assert "bi_compile.dropout_mask" in {v.op for v in report.verdicts}


REFUSED = {
    "attention by default": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
        {},
        r'options=\{"dropout": "per_sample"\}',
    ),
    "by default": (lambda x: F.dropout(x, 0.5), {}, r'options=\{"dropout": "per_sample"\}'),
    "other noise": (lambda x: x + torch.randn_like(x), PER_SAMPLE, "depend on the position"),
    "noise that is dropped out": (
        lambda x: F.dropout(torch.rand_like(x), 0.5),
        PER_SAMPLE,
        "depend on the position",
    ),
    "samples that lie interleaved": (
        lambda x: F.dropout(x.transpose(0, 1).flatten(0, 1), 0.5),
        PER_SAMPLE,
        "could not be followed",
    ),
    "an unknown value": (lambda x: F.dropout(x, 0.5), {"dropout": "per_row"}, "per_sample"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_is_refused(name):
    torch.compiler.reset()
    fn, options, message = REFUSED[name]
    with pytest.raises(Exception, match=message):
        torch.compile(fn, backend="batch_invariant", options=options)(MEMBERS)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (nn.Dropout(), "the compiled Dropout itself"),
        (nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Dropout())), "module 1.0, of class Dropout"),
    ],
    ids=["alone", "within torch's own containers"],
)
def test_a_module_that_no_line_of_the_user_calls_is_named(model, where):
    torch.compiler.reset()
    with pytest.raises(Exception, match=f"\n  {re.escape(where)}\nHint: "):
        torch.compile(model.train(), backend="batch_invariant")(MEMBERS)
