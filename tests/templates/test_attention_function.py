"""scaled_dot_product_attention over the op: all that stock takes, gradients, and which rungs others keep."""

# pyright: reportArgumentType=false, reportCallIssue=false

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import bi_compile
from bi_compile.errors import UnsupportedDtypeError, UnsupportedOpError
from bi_compile.templates.attention import attention, contract, scaled_dot_product_attention
from tests.bits import assert_same_bits, same_bits
from tests.templates.attention_problems import DTYPES, INF, float64, operands

CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "four dims": (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {}),
    "three dims": (((3, 5, 8), (3, 7, 8), (3, 7, 6)), {}),
    "two dims": (((5, 8), (7, 8), (7, 6)), {}),
    "five dims": (((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 6)), {"attn_mask": (2, 1, 3, 1, 7)}),
    "five dims, mask of four": (
        ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 6)),
        {"attn_mask": (2, 1, 5, 7)},
    ),
    "broadcast batch": (((2, 3, 5, 8), (1, 3, 7, 8), (1, 1, 7, 6)), {}),
    "scale": (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"scale": 0.7}),
    "causal": (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"is_causal": True}),
    "mask of two dims": (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"attn_mask": (5, 7)}),
    "mask of three dims": (((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"attn_mask": (3, 1, 7)}),
    "grouped": (((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 6)), {"enable_gqa": True}),
    "grouped, three dims": (((6, 5, 8), (2, 7, 8), (2, 7, 6)), {"enable_gqa": True}),
}


def call(
    name: str, dtype: torch.dtype, mask_dtype: torch.dtype | None = None
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Inputs and options of one of CALLS."""
    shapes, options = CALLS[name]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    if "attn_mask" in options:
        mask = torch.randn(options["attn_mask"])
        mask = mask > -0.5 if mask_dtype == torch.bool else mask.to(mask_dtype or dtype)
        options = {**options, "attn_mask": mask}
    return inputs, options


@pytest.mark.parametrize("name", sorted(CALLS))
def test_function_follows_stock(name):
    for dtype in DTYPES:
        for mask_dtype in (torch.bool, dtype, torch.float32):
            if mask_dtype != dtype and "attn_mask" not in CALLS[name][1]:
                continue
            inputs, options = call(name, dtype, mask_dtype)
            ours = scaled_dot_product_attention(*inputs, **options)
            wide = {
                k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for k, x in options.items()
            }
            reference = F.scaled_dot_product_attention(*(x.double() for x in inputs), **wide)
            assert ours.dtype == dtype
            tolerance = 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours.double(), reference, atol=2 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_gradients_are_those_of_stock(name):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.06)):
        inputs, options = call(name, dtype)
        leaves = [x.requires_grad_() for x in inputs]
        if "attn_mask" in options:
            leaves.append(options["attn_mask"].requires_grad_())
        out = scaled_dot_product_attention(*inputs, **options)
        weight = torch.randn(out.shape).to(dtype)
        ours = torch.autograd.grad((out * weight).sum(), leaves)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        wide_options: dict[str, Any] = {**options, "attn_mask": wide[3]} if len(wide) == 4 else options
        reference = F.scaled_dot_product_attention(*wide[:3], **wide_options)
        expected = torch.autograd.grad((reference * weight.double()).sum(), wide)
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


def test_softcap_and_sinks_with_gradients():
    for softcap, with_sinks in ((0.8, False), (0.0, True), (1.3, True)):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.06)):
            q, k, v = (x.requires_grad_() for x in operands(2, 4, 2, 9, 12, 8, 6, dtype))
            mask = torch.rand(2, 1, 9, 12) < 0.7
            mask[..., 0] = True
            sinks = torch.randn(4, dtype=dtype, requires_grad=True) if with_sinks else None
            leaves = [x for x in (q, k, v, sinks) if x is not None]
            options = {"scale": 0.4, "enable_gqa": True, "softcap": softcap, "sinks": sinks}
            out = scaled_dot_product_attention(q, k, v, mask, **options)
            wide = [x.detach().double().requires_grad_() for x in leaves]
            reference = float64(*wide[:3], mask, False, 0.4, softcap, wide[3] if with_sinks else None)
            torch.testing.assert_close(out.double(), reference, atol=40 * tolerance, rtol=tolerance)
            weight = torch.randn_like(out)
            ours = torch.autograd.grad((out * weight).sum(), leaves)
            expected = torch.autograd.grad((reference * weight.double()).sum(), wide)
            for a, b in zip(ours, expected, strict=True):
                scale = float(b.abs().max())
                torch.testing.assert_close(a.double(), b, atol=tolerance * scale, rtol=tolerance)


def test_rows_without_any_key_have_no_gradient():
    q, k, v = (torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    scaled_dot_product_attention(q, k, v, mask).sum().backward()
    assert q.grad is not None
    assert (q.grad[0, 0, 2] == 0).all()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("number", [torch.finfo(torch.float32).min, -1e30, 1e30])
def test_rows_whose_keys_are_all_masked_by_a_number_have_the_gradients_of_an_average(number):
    q, k, v = (torch.randn(2, 2, 5, 8) for _ in range(3))
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, :, 1:3] = number
    weight = torch.randn_like(q)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours = torch.autograd.grad(scaled_dot_product_attention(*leaves, mask), leaves, weight)
    # Stock attention has the gradients of weights that sum to 5 there.
    exact = (wide[0] @ wide[1].mT / 8**0.5 + mask.double()).softmax(-1) @ wide[2]
    for a, b in zip(ours, torch.autograd.grad(exact, wide, weight.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


def test_gradients_do_not_know_the_batch():
    q, k, v = (torch.randn(5, 4, 70, 16) for _ in range(3))
    weight = torch.randn(5, 4, 70, 16)

    def gradients(at: slice) -> list[torch.Tensor]:
        leaves = [x[at].clone().requires_grad_() for x in (q, k, v)]
        out = scaled_dot_product_attention(*leaves, is_causal=True)
        return list(torch.autograd.grad(out, leaves, weight[at]))

    together = gradients(slice(None))
    for i in range(5):
        for a, b in zip(gradients(slice(i, i + 1)), together, strict=True):
            assert_same_bits(a, b[i : i + 1], "gradient")


def test_traced_with_symbolic_sizes_it_gives_the_same_bits():
    def step(q, k, v, mask):
        return scaled_dot_product_attention(q, k, v, mask)

    compiled = torch.compile(step, backend="aot_eager", dynamic=True, fullgraph=True)
    for batch, length in ((3, 9), (5, 20), (2, 33)):
        inputs = [torch.randn(batch, 4, length, 16, requires_grad=True) for _ in range(3)]
        mask = torch.rand(batch, 1, 1, length) < 0.9
        weight = torch.randn(batch, 4, length, 16)
        found = compiled(*inputs, mask)
        expected = step(*inputs, mask)
        assert_same_bits(found, expected)
        pairs = (torch.autograd.grad(out, inputs, weight) for out in (found, expected))
        for a, b in zip(*pairs, strict=True):
            assert_same_bits(a, b, "gradient")


def test_fp64_on_a_cuda_device_is_refused_when_traced():
    """Before anything is compiled or run: no device is needed to see it."""
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, 8, dtype=torch.float64, device="cuda")
        for call in (
            lambda: scaled_dot_product_attention(q, q, q),
            lambda: contract._fake(q, q, q, None, True, 0.5),
        ):
            with pytest.raises(
                UnsupportedDtypeError, match=r"attention on CUDA devices does not support .*64"
            ):
                call()


def test_bad_input_is_refused():
    q, k, v = operands(1, 2, 2, 3, 4, 8, 8, torch.float32)
    with pytest.raises(UnsupportedOpError, match=r"^scaled_dot_product_attention with dropout"):
        scaled_dot_product_attention(q, k, v, dropout_p=0.1)
    with pytest.raises(RuntimeError, match="attn_mask and is_causal=True exclude one another"):
        scaled_dot_product_attention(q, k, v, torch.ones(3, 4, dtype=torch.bool), is_causal=True)
    with pytest.raises(RuntimeError, match="must have one dtype"):
        scaled_dot_product_attention(q, k.double(), v)
    with pytest.raises(RuntimeError, match="attn_mask must be boolean, fp32 or of the query's dtype"):
        scaled_dot_product_attention(q, k, v, torch.ones(3, 4, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="two dims or more"):
        scaled_dot_product_attention(q[0, 0, 0], k, v)
    for dtype in (torch.complex64, torch.int64, torch.float8_e4m3fn):
        with pytest.raises(UnsupportedDtypeError, match=rf"attention does not support {dtype}"):
            scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))
    with pytest.raises(RuntimeError, match="attention does not support"):
        attention(q.long(), k.long(), v.long(), None, False, 1.0)
    with pytest.raises(RuntimeError, match="Hq a multiple of Hkv"):
        attention(q, k[:, :0], v[:, :0], None, False, 1.0)
    with pytest.raises(RuntimeError, match="Hq a multiple of Hkv"):
        attention(q, k, v[:, :, 1:], None, False, 1.0)
    with pytest.raises(RuntimeError, match="the mask is boolean, fp32 or of q's dtype"):
        attention(q, k, v, torch.ones(3, 4, dtype=torch.int32), False, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_which_rungs_attention_written_by_hand_keeps(dtype):
    """Product, softmax, product, op by op: B and Q; padding on the left in fp32, up to a chunk of 256."""

    def by_hand(q, k, v, attend):
        scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(~attend, -INF)
        return scores.softmax(-1) @ v

    keys = 600
    q, k, v = operands(3, 2, 2, keys, keys, 24, 200, dtype)
    causal = torch.ones(keys, keys, dtype=torch.bool).tril()

    def left_padded(length, padding):
        alone = by_hand(*(x[:1, :, -length:] for x in (q, k, v)), causal[:length, :length])
        real = causal[:length, :length]
        mask = F.pad(real, (padding, 0), value=False)
        wide = [F.pad(x[:1, :, -length:], (0, 0, padding, 0)) for x in (k, v)]
        return same_bits(by_hand(q[:1, :, -length:], *wide, mask), alone)

    with bi_compile.eager():
        full = by_hand(q, k, v, causal)
        assert_same_bits(by_hand(q[1:2], k[1:2], v[1:2], causal), full[1:2], "rung B")
        for i in (0, 63, 255, 256, 257, 599):
            step = by_hand(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], causal[i, : i + 1])
            assert_same_bits(step, full[:, :, i : i + 1], f"rung Q, query {i}")
        short = all(left_padded(length, padding) for length, padding in ((5, 1), (99, 157), (201, 55)))
        # The limits that docs/generation.md tells: bf16 products take elements along K in pairs.
        assert short == (dtype == torch.float32)
        assert not left_padded(500, 77)
