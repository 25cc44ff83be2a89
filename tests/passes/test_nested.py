"""Jagged nested tensors: a sample has the bits that it has alone as an ordinary tensor, in any nest."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.errors import UnsupportedOpError
from bi_compile.report import collect
from tests.bits import assert_same_bits, same_bits

LENGTHS = (5, 17, 1, 33, 2)


class Encoder(nn.Module):
    """What works on [N, L, D], nested or not."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.attended, self.norm = nn.LayerNorm(64), nn.RMSNorm(64)
        self.query, self.key_value, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, False)
        self.up, self.down = nn.Linear(64, 100), nn.Linear(100, 64)

    def forward(self, x):
        y = self.attended(x)
        q = self.query(y).unflatten(-1, (4, 16)).transpose(1, 2)
        k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.key_value(y).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        # Outside of training: the mean's own gradient cannot be traced for nested tensors.
        return x, None if self.training else x.mean(1)


def nest(samples):
    return torch.nested.nested_tensor(list(samples), layout=torch.jagged)


def samples_of(outputs, i):
    tokens, pooled = outputs
    return tokens.unbind()[i], pooled[i]


@pytest.mark.parametrize(
    ("dtype", "causal"), [(torch.float32, True), (torch.bfloat16, False)], ids=["fp32, causal", "bf16"]
)
def test_a_sample_is_the_same_alone_and_in_every_nest(dtype, causal):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Encoder(causal).to(dtype).eval().requires_grad_(False)
    samples = [torch.randn(n, 64).to(dtype) for n in LENGTHS]
    with bi_compile.eager():
        # The mean of a nested tensor rounds its sum first: in bf16 that of an ordinary one is another.
        alone = [(model(x[None])[0][0], model(nest([x]))[1][0]) for x in samples]
        nested = model(nest(samples))
    compiled = torch.compile(model, backend="batch_invariant", fullgraph=True)
    exact = model.double()
    with collect() as report:
        for order in ((0, 1, 2, 3, 4), (3, 1), (4, 2, 0), (2,)):
            got = compiled.to(dtype)(nest(samples[i] for i in order))
            for place, i in enumerate(order):
                for ours, want in zip(samples_of(got, place), alone[i], strict=True):
                    assert_same_bits(ours, want, f"sample {i} at {place} of {order}")
    assert report.promised
    assert report.canonical["bi_compile.attention"]
    for i, x in enumerate(samples):
        for ours, eager, want in zip(
            alone[i], samples_of(nested, i), exact.double()(x[None].double()), strict=True
        ):
            assert_same_bits(eager, ours)
            torch.testing.assert_close(
                ours.double(), want[0], rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05
            )


def test_control_stock_changes_with_the_nest():
    model = nn.Linear(320, 24).requires_grad_(False)
    samples = [torch.randn(n, 320) for n in (1, 7, 3)]
    whole = model(nest(samples)).unbind()
    assert not all(same_bits(model(nest([x])).unbind()[0], y) for x, y in zip(samples, whole, strict=True))
    with bi_compile.eager():
        whole = model(nest(samples)).unbind()
        for x, y in zip(samples, whole, strict=True):
            assert_same_bits(model(nest([x])).unbind()[0], y)


def test_gradients_are_those_of_the_samples_padded():
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Encoder(causal=True)
    samples = [torch.randn(n, 64) for n in LENGTHS]
    compiled = torch.compile(model, backend="batch_invariant", fullgraph=True)

    def gradients(order):
        leaves = [samples[i].clone().requires_grad_() for i in order]
        tokens, _ = compiled(torch.nested.as_nested_tensor(leaves, layout=torch.jagged))
        (tokens.values() ** 2).sum().backward()
        return {i: leaf.grad for i, leaf in zip(order, leaves, strict=True)}

    whole = gradients((0, 1, 2, 3, 4))
    for order in ((3, 1), (4, 2, 0)):
        for i, gradient in gradients(order).items():
            assert_same_bits(gradient, whole[i])
    exact = samples[1].double()[None].requires_grad_()
    model.double()(exact)[0].square().sum().backward()
    torch.testing.assert_close(whole[1].double(), exact.grad[0], rtol=1e-4, atol=1e-4)


def test_what_has_no_meaning_is_refused():
    x = nest([torch.randn(5, 2, 8), torch.randn(3, 2, 8)]).transpose(1, 2)
    shorter = nest([torch.randn(4, 2, 8), torch.randn(3, 2, 8)]).transpose(1, 2)
    dense = torch.randn(2, 2, 5, 8)
    three_heads = nest([torch.randn(5, 3, 8), torch.randn(3, 3, 8)]).transpose(1, 2)
    attention = F.scaled_dot_product_attention
    holes = torch.nested.nested_tensor_from_jagged(
        torch.randn(9, 8), torch.tensor([0, 5, 9]), lengths=torch.tensor([4, 4])
    )
    strided = torch.nested.nested_tensor([torch.randn(5, 8), torch.randn(3, 8)], layout=torch.strided)
    with bi_compile.eager():
        for call, message in (
            (lambda: attention(x, x, x, attn_mask=dense), "mask or dropout"),
            (lambda: attention(x, x, x, dropout_p=0.5), "mask or dropout"),
            (lambda: torch.ops.bi_compile.differentiable_attention(x, x, x, softcap=2.0), "softcap or sinks"),
            (lambda: attention(x, dense, dense), "must be nested"),
            (lambda: attention(x, shorter, shorter, is_causal=True), "causal, with queries and keys"),
            (lambda: attention(three_heads, x, x), "3 heads of queries, 2 of keys"),
            (lambda: F.linear(holes, torch.randn(4, 8)), "with holes"),
            (lambda: F.linear(x.transpose(2, 3), torch.randn(4, 5)), "ragged dim must come right after"),
            (lambda: F.linear(x.transpose(1, 2), x), "weight or bias is nested"),
            (lambda: F.linear(strided, torch.randn(4, 8)), "layout=torch.jagged"),
            (lambda: F.relu(strided), "layout=torch.jagged"),
        ):
            with pytest.raises(UnsupportedOpError, match=message):
                call()


def test_cross_attention_has_lengths_of_its_own():
    q, k = (nest([torch.randn(n, 2, 8) for n in lengths]) for lengths in ((5, 3), (7, 1)))
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    with bi_compile.eager():
        both = F.scaled_dot_product_attention(q, k, k).unbind()
        for a, b, got in zip(q.unbind(), k.unbind(), both, strict=True):
            assert_same_bits(F.scaled_dot_product_attention(a[None], b[None], b[None])[0], got)
