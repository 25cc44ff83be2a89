"""The mask of dropout: the kernel is its oracle, a sample's mask is its own, and the noise is noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.dropout import dropout_mask, oracle
from tests.templates.rows import DTYPES, LAYOUTS, data

SEED = torch.tensor([12345678901234567])


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    rows=st.sampled_from((0, 1, 2, 3)),
    dim=st.integers(0, 3),
    p=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 2**62),
)
def test_the_kernel_is_the_oracle_for_any_shape_layout_and_place(dtype, shape, rows, dim, p, layout, seed):
    dim %= len(shape)
    shape[dim] *= max(rows, 1)
    x = LAYOUTS[layout](torch.randn(shape).to(dtype))
    drawn = torch.tensor([seed])
    expected = oracle.dropout_mask(x, drawn, p, dim, rows)
    assert torch.equal(dropout_mask(x, drawn, p, dim, rows), expected)
    assert expected.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_sample_has_the_same_mask_alone_and_anywhere_in_a_batch(dtype, rows, dim):
    x = torch.randn(6, 6 * rows, 7).movedim(1, dim).to(dtype)
    parts = x.split(rows, dim)
    alone = [dropout_mask(part, SEED, 0.4, dim, rows) for part in parts]
    as_one = [dropout_mask(part, SEED, 0.4, 0, 0) for part in parts]
    for order in (range(6), (5, 0, 3), (2, 2, 1, 4, 2)):
        batch = torch.cat([parts[i] for i in order], dim)
        expected = torch.cat([alone[i] for i in order], dim)
        assert torch.equal(dropout_mask(batch, SEED, 0.4, dim, rows), expected)
    assert all(map(torch.equal, alone, as_one))
    # Control: the stream of stock dropout goes through the batch.
    stock = [torch.manual_seed(0) and torch.bernoulli(torch.full(part.shape, 0.6)) for part in parts]
    torch.manual_seed(0)
    assert not torch.equal(torch.bernoulli(torch.full(x.shape, 0.6)), torch.cat(stock, dim))


def test_threads_do_not_matter():
    x = torch.randn(64, 4096)
    torch.set_num_threads(1)
    one = dropout_mask(x, SEED, 0.3, 0, 1)
    torch.set_num_threads(2)
    assert torch.equal(dropout_mask(x, SEED, 0.3, 0, 1), one)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_noise_looks_like_noise(p):
    """Rates of all, of places and of samples, and pairs that are as independent as chance has it."""
    n, samples = 1024, 512
    x = torch.randn(samples, n)
    x[1:] = x[0] + torch.arange(1, samples)[:, None] * 2.0**-20  # nearly the same sample
    lost = ~dropout_mask(x, SEED, p, 0, 1)
    other = ~dropout_mask(x, SEED + 1, p, 0, 1)
    deviation = (p * (1 - p)) ** 0.5
    for rate, count in (
        (lost.double().mean(), n * samples),
        (lost.double().mean(0), samples),
        (lost.double().mean(1), n),
    ):
        assert ((rate - p).abs().max() / (deviation / count**0.5)) < 5
    pairs = {
        "neighbours": (lost[:, 1:], lost[:, :-1]),
        "samples": (lost[1:], lost[:-1]),
        "seeds": (lost, other),
        "halves": (lost[:, : n // 2], lost[:, n // 2 :]),
    }
    for name, (a, b) in pairs.items():
        correlation = ((a.double() - p) * (b.double() - p)).mean() / deviation**2
        assert abs(correlation) * a.numel() ** 0.5 < 5, name


def test_what_differs_in_one_bit_loses_other_elements():
    x = data(1, 500, dtype=torch.float32).repeat(2, 1)
    x[1, 250] = torch.nextafter(x[1, 250], torch.tensor(torch.inf))
    first, second = dropout_mask(x, SEED, 0.5, 0, 1)
    assert 150 < int((first != second).sum()) < 350


def test_refusals():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="where the batch is"):
        dropout_mask(x, SEED, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout_mask(x, SEED, 1.5, 0, 1)
    with pytest.raises(UnsupportedDtypeError, match="int64"):
        dropout_mask(x.long(), SEED, 0.5, 0, 1)
