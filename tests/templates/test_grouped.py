"""Grouped products: every group has the bits of `mm` alone, whatever the other groups are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import contraction
from bi_compile.templates.contraction import oracle
from tests.bits import assert_same_bits, order_sensitive

bi = torch.ops.bi_compile
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = {
    "rows": ((0, 1), lambda a, b, g, s: (a[s], b[g])),
    "columns": ((1, 0), lambda a, b, g, s: (a[g], b[:, s])),
    "summed": ((0, 0), lambda a, b, g, s: (a[:, s], b[s])),
}


def operands(kind, ends, k=300, m=5, n=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    total, groups = ends[-1], len(ends)
    shapes = {
        "rows": ((total, k), (groups, k, n)),
        "columns": ((groups, m, k), (k, total)),
        "summed": ((m, total), (total, n)),
    }[kind]
    return [order_sensitive(*shape, dtype=dtype, generator=generator) for shape in shapes]


def groups_of(ends):
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("kind", SHAPES)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), dtype=st.sampled_from(DTYPES))
def test_every_group_equals_the_oracle_alone(kind, sizes, dtype):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    a, b = operands(kind, ends, dtype=dtype)
    out = bi.grouped_mm(a, b, torch.tensor(ends, dtype=torch.int32))
    for group, part in enumerate(groups_of(ends)):
        want = oracle.mm(*SHAPES[kind][1](a, b, group, part))
        place = {"rows": part, "columns": (slice(None), part), "summed": group}[kind]
        assert_same_bits(out[place], want, f"group {group}")


def test_a_row_does_not_see_how_many_share_its_expert():
    a, b = operands("rows", [40, 40, 77], n=200)
    whole = bi.grouped_mm(a, b, torch.tensor([40, 40, 77]))
    for row, ends in ((3, [1, 1, 1]), (50, [0, 0, 1])):
        assert_same_bits(bi.grouped_mm(a[row : row + 1], b, torch.tensor(ends))[0], whole[row])
    # The control: stock products of 40 rows and of one differ.
    assert not torch.equal((a[:40] @ b[0])[3:4], a[3:4] @ b[0])


def test_three_dims_are_bmm_and_rows_behind_the_last_group_are_zero():
    a, b = torch.randn(3, 4, 9), torch.randn(3, 9, 5)
    assert_same_bits(bi.grouped_mm(a, b, None), bi.bmm(a, b))
    out = bi.grouped_mm(torch.full((6, 9), float("nan")), b, torch.tensor([0, 0, 0]))
    assert not out.any()


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_are_close_to_float64(kind):
    ends = [3, 3, 8]
    a, b = (x.double().div(100).requires_grad_() for x in operands(kind, ends, k=6))
    assert torch.autograd.gradcheck(lambda a, b: contraction.grouped_mm(a, b, torch.tensor(ends)), (a, b))


def test_bad_calls_are_refused():
    a, b, ends = torch.randn(6, 4), torch.randn(2, 4, 5), torch.tensor([2, 6])
    with pytest.raises(UnsupportedDtypeError):
        contraction.grouped_mm(a.long(), b.long(), ends)
    with pytest.raises(RuntimeError, match="number of groups"):
        contraction.grouped_mm(a, b, torch.tensor([2, 3, 6]))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        contraction.grouped_mm(a[:, :3], b, ends)
    with pytest.raises(RuntimeError, match="offs unless both are 3-D"):
        contraction.grouped_mm(a, b)
