"""cdist is the norm of every difference, for any shape, order, layout, threads and neighbours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.distance import cdist, oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import DTYPES, LAYOUTS, NEIGHBOURS, data, digest, scrambled, vector_pow

ORDERS = (0.0, 1.0, 2.0, 3.0, 0.5, float("inf"))


@given(
    p=st.sampled_from(ORDERS),
    dtype=st.sampled_from(DTYPES),
    batch=st.sampled_from(((), (2,), (2, 3))),
    rows=st.integers(1, 5),
    others=st.integers(1, 5),
    n=st.sampled_from((1, 2, 7, 31, 33, 384, 1025, 2100)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle(p, dtype, batch, rows, others, n, layout, specials, seed):
    a = LAYOUTS[layout](data(*batch, rows, n, dtype=dtype, seed=seed, specials=specials))
    b = LAYOUTS[layout](data(*batch, others, n, dtype=dtype, seed=seed + 1))
    assert_same_bits(cdist(a, b, p), oracle.cdist(a, b, p, vector_pow), f"p = {p}")


@pytest.mark.parametrize("p", ORDERS)
def test_a_distance_depends_on_its_two_rows_alone(p):
    a, b = data(3, 300, dtype=torch.float32), data(40, 300, dtype=torch.float32, seed=1)
    alone = cdist(a, b[:2], p)
    for neighbour in NEIGHBOURS:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            batch = torch.cat([torch.full((70, 300), neighbour), a])
            assert_same_bits(cdist(batch, b, p)[70:, :2].contiguous(), alone)


def test_stock_torch_sees_the_number_of_rows_and_the_data_shows_it():
    a = torch.randn(40, 30) + 100
    assert not same_bits(torch.cdist(a, a)[:5, :5].contiguous(), torch.cdist(a[:5], a[:5]))
    assert_same_bits(cdist(a, a)[:5, :5].contiguous(), cdist(a[:5], a[:5]))
    assert not cdist(a, a).diagonal().any()


@pytest.mark.parametrize("p", ORDERS)
def test_near_float64(p):
    a, b = torch.randn(7, 200), torch.randn(9, 200)
    exact = torch.cdist(a.double(), b.double(), p)
    torch.testing.assert_close(cdist(a, b, p).double(), exact, rtol=1e-5, atol=0)


def test_nothing_and_bad_calls():
    assert_same_bits(cdist(torch.ones(2, 0), torch.ones(3, 0), float("inf")), torch.zeros(2, 3))
    assert cdist(torch.ones(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert cdist(torch.ones(2, 4), torch.ones(0, 4)).shape == (2, 0)
    with pytest.raises(ValueError, match=r"rows of sizes \[2, 4\] and \[2, 3\] do not fit"):
        cdist(torch.ones(2, 4), torch.ones(2, 3))
    for device in ("meta",):
        with pytest.raises(ValueError, match=r"of one dtype, got float32\[4\] and float32\[2, 4\]"):
            cdist(torch.ones(4, device=device), torch.ones(2, 4, device=device))
        with pytest.raises(ValueError, match=r"not negative, got -1\.0"):
            cdist(torch.ones(2, 4, device=device), torch.ones(2, 4, device=device), -1)
    with pytest.raises(UnsupportedDtypeError, match=r"^cdist does not support torch.int64"):
        cdist(torch.ones(2, 2).long(), torch.ones(2, 2).long())
    torch.library.opcheck(torch.ops.bi_compile.cdist.default, (torch.randn(4, 6), torch.randn(6, 5).t(), 2.0))


def test_golden_bits():
    results = [
        cdist(scrambled(5, 1500, dtype=dtype), scrambled(4, 1500, dtype=dtype).flip(1), p)
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        for p in (0.0, 1.0, 2.0, float("inf"))
    ]
    assert digest(*results) == "cec214349a00c926"
