"""Sizes are products of factors: what divides what is known without numbers."""

import sympy
from torch.utils._sympy.functions import FloorDiv

from bi_compile.analysis.axes import Axis, Unknown, reshaped
from bi_compile.analysis.sizes import ONE, Size, product

B, S = (Size.of(sympy.Symbol(name, positive=True, integer=True)) for name in "bs")


def test_products_and_quotients():
    assert (B * S).over(S) == B
    assert (B * S * Size(12)).over(B * Size(4)) == S * Size(3)
    assert B.over(S) is None
    assert Size(7).over(Size(2)) is None
    assert product([B, S, ONE]) == S * B


def test_sums_are_factored_once():
    b = sympy.Symbol("b", positive=True, integer=True)
    assert Size.of(b * 3 + b) == Size.of(b) * Size(4)
    assert Size.of(b + 1).over(Size.of(b)) is None


def test_a_merged_dim_is_split_again():
    axis = Axis("B", 0)
    merged = reshaped(axis, B, [B, S, Size(8)], [B * S, Size(8)])
    assert (merged.dim, merged.outer, merged.inner) == (0, ONE, S)
    assert reshaped(merged, B, [B * S, Size(8)], [B, S, Size(8)]) == axis
    behind = reshaped(Axis("B", 1), B, [S, B, Size(8)], [S * B, Size(8)])
    assert (behind.outer, behind.inner) == (S, ONE)


def test_a_scrambling_reshape_is_not_taken_for_a_transposition():
    try:
        reshaped(Axis("B", 0), B, [B, S], [S, B])
    except Unknown:
        return
    raise AssertionError("[B, S] seen as [S, B] has the samples in other rows")


def test_a_floor_is_a_multiple_or_stays_as_it_is():
    b = sympy.Symbol("b", positive=True, integer=True)
    assert Size.of(FloorDiv(2 * b + 1, 2)) == Size.of(b)
    # Without a value below 6, where the divisor is 0: the size of `unflatten(0, (b // 6, -1))`.
    rest = FloorDiv(b, FloorDiv(b, 6))
    assert Size.of(rest) == Size(1, ((rest, 1),))
