"""flex_attention has the tree of attention, whatever its score_mod and its block mask say."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    create_mask,
    flex_attention,
)

import bi_compile
from bi_compile.passes.flex_attention import flex_attention as operator
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, same_bits

BATCH, HEADS, KV_HEADS, LENGTH, SIZE = 5, 4, 2, 150, 16
DOCUMENT = torch.arange(LENGTH).div(40, rounding_mode="floor")
SLOPES = torch.linspace(0.1, 0.4, HEADS)


def causal(b, h, q, k):
    return q >= k


def documents(b, h, q, k):
    return (q >= k) & (DOCUMENT[q] == DOCUMENT[k])


def window(b, h, q, k):
    return (q >= k) & (q - k < 32)


def alibi(score, b, h, q, k):
    return score + SLOPES[h] * (k - q)


def softcap(score, b, h, q, k):
    return torch.tanh(score / 5) * 5


def odd(score, b, h, q, k):
    return torch.where(h % 2 == 0, score * score.sigmoid(), score - 0.1 * (q - k).abs())


MASKS = {"all": None, "causal": causal, "documents": documents, "window": window}
SCORES = {"none": None, "alibi": alibi, "softcap": softcap, "odd": odd}


def operands(dtype=torch.float32, length=LENGTH):
    torch.manual_seed(0)
    shapes = (HEADS, length), (KV_HEADS, length), (KV_HEADS, length)
    return [torch.randn(BATCH, *shape, SIZE).to(dtype) for shape in shapes]


def attend(mask=None, score=None, length=LENGTH, **options):
    block_mask = mask and create_block_mask(mask, None, None, length, length, device="cpu")

    def run(q, k, v):
        return flex_attention(q, k, v, score_mod=score, block_mask=block_mask, enable_gqa=True, **options)

    return run


def exact(mask, score, q, k, v):
    """The same in float64, by hand, and the scores."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
    scores = q @ k.mT / SIZE**0.5
    b, h, i, j = torch.meshgrid(*map(torch.arange, scores.shape), indexing="ij")
    scores = score(scores, b, h, i, j) if score else scores
    scores = scores.masked_fill(~mask(b, h, i, j), -torch.inf) if mask else scores
    return scores.softmax(-1) @ v, scores


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("mask", MASKS)
def test_rows_keep_their_bits(mask, score):
    inputs = operands()
    fn = attend(MASKS[mask], SCORES[score])
    with bi_compile.eager():
        assert_batch_invariant(fn, *inputs, sizes=(1, 2, 3, 7), trials=1)
        out = fn(*inputs)
    torch.testing.assert_close(
        out.double(), exact(MASKS[mask], SCORES[score], *inputs)[0], rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(("mask", "score"), [("all", "none"), ("documents", "odd")])
def test_compiled_is_eager(mask, score):
    torch.compiler.reset()
    inputs = operands()
    fn = attend(MASKS[mask], SCORES[score])
    compiled = torch.compile(fn, backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(compiled, *inputs, sizes=(1, 2, 3, 7), trials=1)
    out = compiled(*inputs)
    with bi_compile.eager():
        assert_same_bits(fn(*inputs), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_alone_is_that_of_scaled_dot_product_attention(mask, dtype):
    q, k, v = operands(dtype)
    dense = MASKS[mask] and create_mask(MASKS[mask], 1, 1, LENGTH, LENGTH, device="cpu")
    with bi_compile.eager():
        ours = attend(MASKS[mask])(q, k, v)
        assert_same_bits(ours, F.scaled_dot_product_attention(q, k, v, dense, enable_gqa=True))


@pytest.mark.parametrize("score", SCORES)
def test_shorter_sequences_are_the_first_rows(score):
    """Rung Q: causal rows of 70 tokens are those of 150."""
    q, k, v = operands()
    with bi_compile.eager():
        full = attend(causal, SCORES[score])(q, k, v)
        part = attend(causal, SCORES[score], length=70)(*(t[:, :, :70] for t in (q, k, v)))
    assert_same_bits(part, full[:, :, :70])


def shifted(score, by):
    return score and (lambda s, b, h, i, j: score(s, b, h, i + by, j))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("score", ["none", "alibi", "softcap"])
def test_one_query_has_the_bits_of_its_row(score, dtype):
    """Rung Q: on devices with a kernel for few queries, stock PyTorch takes another one here."""
    q, k, v = operands(dtype)
    with bi_compile.eager():
        full = attend(causal, SCORES[score])(q, k, v)
        for at in (0, 63, 64, 149):
            own = slice(at, at + 1)
            score_mod = shifted(SCORES[score], at)
            one = flex_attention(
                q[:, :, own], k[:, :, : at + 1], v[:, :, : at + 1], score_mod=score_mod, enable_gqa=True
            )
            assert_same_bits(one, full[:, :, own], f"query {at}")


@pytest.mark.parametrize("score", ["none", "alibi", "softcap"])
def test_nan_in_padding_on_the_left_is_not_there(score):
    q, k, v = operands(length=70)
    with bi_compile.eager():
        alone = attend(causal, SCORES[score], length=70)(q, k, v)
        for pad in (1, 65):
            after = [F.pad(t, (0, 0, pad, 0), value=math.nan) for t in (q, k, v)]
            mask = create_block_mask(
                lambda b, h, i, j, pad=pad: (i >= j) & (j >= pad),
                None,
                None,
                70 + pad,
                70 + pad,
                device="cpu",
            )
            out = flex_attention(*after, score_mod=SCORES[score], block_mask=mask, enable_gqa=True)
            assert_same_bits(out[:, :, pad:], alone, f"{pad} in front")


def test_kernel_options_change_nothing():
    inputs = operands(length=40)
    options = {"BLOCK_M": 32, "BLOCK_N": 16, "FORCE_USE_FLEX_ATTENTION": True}
    with bi_compile.eager():
        ours = attend(causal, alibi, length=40, kernel_options=options)(*inputs)
        assert_same_bits(ours, attend(causal, alibi, length=40)(*inputs))


def test_stock_shows_the_length():
    """The control of rung Q."""
    q, k, v = operands()
    stock = [torch.compile(attend(causal, odd, length=n), backend="inductor") for n in (LENGTH, 70)]
    full, part = stock[0](q, k, v), stock[1](*(t[:, :, :70] for t in (q, k, v)))
    torch.testing.assert_close(part, full[:, :, :70], rtol=1e-4, atol=1e-5)
    assert not same_bits(part, full[:, :, :70])


def test_blocks_leave_the_setting_of_flex_attention_as_it_was(monkeypatch):
    from torch.nn.attention import flex_attention as module

    name = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    for before in (False, True):
        monkeypatch.setattr(module, name, before)
        with bi_compile.eager(), bi_compile.eager():
            assert getattr(module, name)
        assert getattr(module, name) is before


def test_a_mask_may_read_the_sample():
    lengths = torch.tensor([150, 3, 77, 149, 20])
    q, k, v = operands()

    def padded(q, k, v, lengths):
        mask = create_block_mask(
            lambda b, h, i, j: j < lengths[b], q.shape[0], None, LENGTH, LENGTH, device="cpu"
        )
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)

    with bi_compile.eager():
        out = padded(q, k, v, lengths)
        for sample in range(BATCH):
            own = slice(sample, sample + 1)
            assert_same_bits(padded(q[own], k[own], v[own], lengths[own]), out[own])
            real = [t[own, :, : lengths[sample]] for t in (k, v)]
            assert_same_bits(F.scaled_dot_product_attention(q[own], *real, enable_gqa=True), out[own])


def test_blocks_hide_and_show_without_a_mask():
    """A BlockMask of its parts: a partial block asks the mask, a full one does not, others are hidden."""
    numbers, indices = torch.tensor([[[1, 1]]]), torch.tensor([[[[0, 1], [1, 0]]]])
    full_numbers, full_indices = torch.tensor([[[0, 1]]]), torch.tensor([[[[0, 1], [0, 1]]]])
    mask = BlockMask.from_kv_blocks(
        numbers, indices, full_numbers, full_indices, BLOCK_SIZE=128, mask_mod=causal, seq_lengths=(150, 150)
    )
    i, j = torch.arange(150)[:, None], torch.arange(150)
    visible = ((i < 128) & (j < 128) | (i >= 128) & (j >= 128)) & (i >= j) | (i >= 128) & (j < 128)
    q, k, v = operands()
    with bi_compile.eager():
        ours = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        assert_same_bits(ours, F.scaled_dot_product_attention(q, k, v, visible, enable_gqa=True))


@pytest.mark.parametrize("score", ["none", "odd"])
def test_gradients_logsumexp_and_largest_score(score):
    """The operator itself: stock PyTorch has these on other devices alone."""
    score_mod = SCORES[score] or (lambda s, *at: s)
    block_mask = create_block_mask(causal, None, None, 40, 40, device="cpu").as_tuple()

    def run(q, k, v, **asked):
        return operator(q, k, v, score_mod, block_mask, SIZE**-0.5, asked)

    inputs = [t.requires_grad_() for t in operands(length=40)]
    alone = [t.detach()[1:2].clone().requires_grad_() for t in inputs]
    double = [t.detach().double().requires_grad_() for t in inputs]
    out, scores = exact(causal, SCORES[score], *double)
    logsumexp = scores.logsumexp(-1)
    (out.square().sum() + logsumexp.sum()).backward()
    with bi_compile.eager():
        for batch in inputs, alone:
            ours, lse, largest = run(*batch, OUTPUT_MAX=True)
            assert_same_bits(run(*batch)[0], ours, "with and without the largest score")
            (ours.square().sum() + lse.sum() * math.log(2)).backward()
            samples = slice(1, 2) if batch is alone else slice(None)
            for found, wanted in (lse, logsumexp), (largest, scores.amax(-1)):
                torch.testing.assert_close(
                    found.double() * math.log(2), wanted[samples], rtol=1e-5, atol=1e-5
                )
    for whole, wanted, own in zip(inputs, double, alone, strict=True):
        torch.testing.assert_close(whole.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)
        assert_same_bits(own.grad, whole.grad[1:2])


def test_a_neighbour_that_is_not_finite_does_not_leak():
    q, k, v = operands()
    with bi_compile.eager():
        before = attend(documents, odd)(q, k, v)
        for t in (q, k, v):
            t[1] = torch.nan
        k[:, :, 149], v[:, :, 149] = torch.inf, torch.nan
        after = attend(documents, odd)(q, k, v)
    assert_same_bits(after[2:, :, :149], before[2:, :, :149])
    assert not same_bits(after[1], before[1])
