"""Bits and ulps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.testing.bits import differing, ulps

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", FLOATS)
@given(steps=st.integers(0, 1000), start=st.floats(-100, 100, width=16))
def test_ulps_counts_steps_between_neighbours(dtype, steps, start):
    """Stepping the integer behind a number away from zero is stepping through its neighbours."""
    x = torch.tensor([start], dtype=dtype)
    y = (x.view(INTEGERS[dtype.itemsize]) + steps).view(dtype)
    if not bool(y.isnan()):
        assert ulps(x, y).item() == steps
        assert ulps(y, x).item() == steps


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulps_crosses_zero(dtype):
    tiny = torch.tensor([1], dtype=INTEGERS[dtype.itemsize]).view(dtype)
    assert ulps(tiny, -tiny).item() == 2
    assert ulps(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype)).item() == 0


def test_ulps_of_opposite_extremes_does_not_overflow():
    largest = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    assert ulps(largest, -largest).item() == pytest.approx(2 * (2047 * 2**52), rel=1e-9)


def test_nan_has_no_distance_but_equal_bits():
    nan = torch.tensor([torch.nan])
    assert ulps(nan, torch.ones(1)).isnan().all()
    assert not differing(nan, nan).any()


def test_zero_signs_differ_and_complex_is_compared_in_both_parts():
    assert differing(torch.zeros(1), -torch.zeros(1)).all()
    a = torch.tensor([1 + 2j, 3 + 4j])
    b = torch.tensor([1 + 2j, 3 - 4j])
    assert differing(a, b).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.uint8])
def test_integers_and_booleans_are_compared_too(dtype):
    a = torch.tensor([0, 1]).to(dtype)
    assert differing(a, a.flip(0)).all()
