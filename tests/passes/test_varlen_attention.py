"""varlen_attn gives every packed sequence the bits that it has alone, padded or paged."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

import bi_compile
from tests.bits import assert_same_bits

LENGTHS = [5, 17, 1, 70]
SIZES = (4, 16)


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed(lengths=LENGTHS, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(sum(lengths), *SIZES).to(dtype) for _ in range(3)]


def run(q, k, v, q_lengths=LENGTHS, k_lengths=LENGTHS, **options):
    return varlen_attn(
        q, k, v, cumulative(q_lengths), cumulative(k_lengths), max(q_lengths), max(k_lengths), **options
    )


def each(x, lengths=LENGTHS):
    """[T, H, D] to a list of [H, L, D]."""
    return [part.transpose(0, 1) for part in x.split(lengths)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (9, 0), (3, 4)], ids=str)
def test_a_sequence_has_its_bits_alone(window, dtype):
    q, k, v = packed(dtype=dtype)
    with bi_compile.eager():
        out = each(run(q, k, v, window_size=window))
        for own, *parts in zip(out, each(q), each(k), each(v), strict=True):
            length = own.shape[1]
            alone = [p.transpose(0, 1) for p in parts]
            assert_same_bits(run(*alone, [length], [length], window_size=window).transpose(0, 1), own)
            i, j = torch.arange(length)[:, None], torch.arange(length)
            left, right = (w if w >= 0 else length for w in window)
            mask = (j >= i - left) & (j <= i + right)
            assert_same_bits(F.scaled_dot_product_attention(*parts, mask), own)
            exact = F.scaled_dot_product_attention(*(p.double() for p in parts), mask)
            bound = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(own.double(), exact, rtol=bound, atol=bound)


def test_compiled_has_the_same_bits_for_any_packing():
    torch.compiler.reset()
    shared = bi_compile.mark_batch

    def attend(q, k, v, ends):
        return varlen_attn(q, k, v, ends, ends, 70, 70, window_size=(-1, 0))

    compiled = torch.compile(attend, backend="batch_invariant", fullgraph=True, dynamic=True)
    q, k, v = packed()
    # Tokens of all sequences lie in one dim: it is no batch of samples.
    out = compiled(*(shared(t, None) for t in (q, k, v, cumulative(LENGTHS))))
    with bi_compile.eager():
        assert_same_bits(run(q, k, v, window_size=(-1, 0)), out)
    order = [3, 1]
    some = [torch.cat([t.split(LENGTHS)[n] for n in order]) for t in (q, k, v)]
    ends = cumulative([LENGTHS[n] for n in order])
    assert_same_bits(
        compiled(*(shared(t, None) for t in (*some, ends))), torch.cat([out.split(LENGTHS)[n] for n in order])
    )


def test_causality_and_windows_count_from_the_ends():
    """Decoding: queries are the last of their sequence."""
    q, k, v = packed()
    lengths = [3, 1, 1, 7]
    with bi_compile.eager():
        full = each(run(q, k, v, window_size=(8, 0)))
        last = torch.cat([p[-n:] for p, n in zip(q.split(LENGTHS), lengths, strict=True)])
        parts = each(run(last, k, v, lengths, window_size=(8, 0)), lengths)
    for part, whole, n in zip(parts, full, lengths, strict=True):
        assert_same_bits(part, whole[:, -n:])


@pytest.mark.parametrize("page", [4, 16])
def test_pages_in_any_order(page):
    q, k, v = packed()
    pages = [-(-n // page) for n in LENGTHS]
    order = torch.randperm(sum(pages) + 3).split([*pages, 3])[:-1]
    table = torch.zeros(len(LENGTHS), max(pages), dtype=torch.int32)
    pools = [torch.full((sum(pages) + 3, page, *SIZES), torch.nan) for _ in range(2)]
    for n, places in enumerate(order):
        table[n, : pages[n]] = places
        for pool, x in zip(pools, (k, v), strict=True):
            own = F.pad(x.split(LENGTHS)[n], (0, 0, 0, 0, 0, pages[n] * page - LENGTHS[n]), value=torch.nan)
            pool[places] = own.unflatten(0, (-1, page))
    ends = cumulative(LENGTHS)
    used = torch.tensor(LENGTHS, dtype=torch.int32)
    with bi_compile.eager():
        paged = torch.ops.torch_attn._varlen_attn(
            q, *pools, ends, None, 70, 70, True, None, [-1, 0], False, used, table
        )[0]
        assert_same_bits(paged, run(q, k, v, window_size=(-1, 0)))


@pytest.mark.parametrize("longest", [(69, 70), (70, 69)], ids=str)
def test_a_sequence_longer_than_said_is_refused_and_nan_in_graphs(longest):
    q, k, v = packed()
    ends = cumulative(LENGTHS)
    with bi_compile.eager(), pytest.raises(ValueError, match=r"but sequences have up to \(70, 70\)"):
        varlen_attn(q, k, v, ends, ends, *longest)
    torch.compiler.reset()
    attend = torch.compile(varlen_attn, backend="batch_invariant", fullgraph=True)
    found = attend(*(bi_compile.mark_batch(t, None) for t in (q, k, v, ends, ends)), *longest)
    assert found[-70:].isnan().all()
    with bi_compile.eager():
        assert_same_bits(found[:-70], run(q, k, v)[:-70])


def test_gradients_and_logsumexp():
    from torch.nn.attention.varlen import AuxRequest

    q, k, v = (t.requires_grad_() for t in packed())
    double = [t.detach().double().requires_grad_() for t in (q, k, v)]
    exact = [F.scaled_dot_product_attention(*parts) for parts in zip(*(each(t) for t in double), strict=True)]
    sum(part.square().sum() for part in exact).backward()
    with bi_compile.eager():
        out, lse = run(q, k, v, return_aux=AuxRequest(lse=True))
        out.square().sum().backward()
    for ours, wanted in zip((q, k, v), double, strict=True):
        torch.testing.assert_close(ours.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)
    scores = [(a @ b.mT / 4).logsumexp(-1) for a, b in zip(each(double[0]), each(double[1]), strict=True)]
    torch.testing.assert_close(lse.double(), torch.cat(scores, 1), rtol=1e-5, atol=1e-5)
