"""Reductions by index: one chain for every slot, whatever the batch, the layout and the threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.scatter import index_put_add, oracle, scatter_reduce
from bi_compile.templates.scatter.contract import REDUCTIONS
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.templates.rows import DTYPES, LAYOUTS, NEIGHBOURS, digest, sample, scrambled


@settings(max_examples=40)
@given(
    reduce=st.sampled_from(REDUCTIONS),
    include_self=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    smaller=st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)),
    slots=st.integers(1, 6),
    dim=st.integers(-3, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    expanded=st.booleans(),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle_for_any_shape_layout_and_dim(
    reduce, include_self, dtype, shape, smaller, slots, dim, layout, expanded, specials, seed
):
    generator = torch.Generator().manual_seed(seed)
    src = LAYOUTS[layout](sample(reduce, *shape, dtype=dtype, seed=seed, specials=specials))
    x_shape = list(shape)
    x_shape[dim] = slots
    x = LAYOUTS[layout](sample(reduce, *x_shape, dtype=dtype, seed=seed + 1))
    index = torch.randint(0, slots, shape, generator=generator)
    if expanded:
        index = index.select((dim + 1) % 3, 0).unsqueeze((dim + 1) % 3).expand(shape)
    index = index[tuple(slice(0, max(1, n - s)) for n, s in zip(shape, smaller, strict=True))]
    arguments = (x, dim, index, src, reduce, include_self)
    assert_same_bits(scatter_reduce(*arguments), oracle.scatter_reduce(*arguments), reduce)


def forms_of_index(shape: tuple[int, ...], dim: int, slots: int) -> tuple[torch.Tensor, ...]:
    """Of a source of that shape: each element's own slot, for a part of it alone, and one for a whole row."""
    one = [n if d == dim % len(shape) else 1 for d, n in enumerate(shape)]
    part = [n - 1 for n in shape]
    own, some, rows = (torch.randint(0, slots, tuple(sizes)) for sizes in (shape, part, one))
    return own, some, rows.expand(shape)


I = torch.tensor  # noqa: E741
INDICES = {
    "rows": (I([0, 2, 2, -1, 0]),),
    "pairs": (I([0, 2, 2, -1]), I([1, 1, 1, 3])),
    "broadcast": (I([[0], [3]]), I([[1, 1, 4]])),
    "a middle dim": (None, I([[4, 0], [4, 4]])),
    "parted by a slice": (I([1, 1, 0]), None, I([2, 2, 2])),
    "a scalar": (I(1), I([0, 0])),
    "the last dims": (None, I([0, 0, 1]), I([5, 5, 0])),
    "a mask": (I([True, False, True, True]),),
    "a mask of two dims": (torch.arange(20).view(4, 5) % 3 == 0,),
    "a mask and an index": (I([True, False, False, True]), I([[0, 0], [1, 1]])),
    "nothing": (I([], dtype=torch.long),),
    "int32": (I([1, 1], dtype=torch.int32),),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_index_put_add_is_the_oracle_for_any_mix_of_indices(name, dtype):
    indices = INDICES[name]
    x = order_sensitive(4, 5, 6, dtype=dtype)
    picked = x[tuple(slice(None) if i is None else i for i in indices)]
    for layout in LAYOUTS.values():
        values = order_sensitive(*picked.shape, dtype=dtype)
        ours = index_put_add(layout(x), indices, layout(values))
        assert_same_bits(ours, oracle.index_put_add(x, indices, values), name)
    wide = torch.ops.aten.index_put(x.double(), indices, values.double(), True)
    torch.testing.assert_close(ours.double(), wide, rtol=2e-2, atol=1e-3 if dtype == torch.float32 else 8)
    one = torch.tensor(0.5, dtype=dtype)
    assert_same_bits(
        index_put_add(x, indices, one), oracle.index_put_add(x, indices, one.expand(picked.shape))
    )


@pytest.mark.parametrize("reduce", ["sum", "mean", "prod"])
def test_threads_neighbours_and_layout_do_not_show(reduce):
    rows, index = sample(reduce, 5, 700, dtype=torch.float32), torch.randint(0, 9, (5, 700))
    x = torch.ones(5, 9)
    alone = torch.stack([scatter_reduce(x[i], 0, index[i], rows[i], reduce) for i in range(5)])
    for neighbour in NEIGHBOURS:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            places = torch.randperm(300)[:5]
            batch, indices = torch.full((300, 700), neighbour), torch.zeros(300, 700, dtype=torch.long)
            batch[places], indices[places] = rows, index
            ours = scatter_reduce(torch.ones(300, 9), 1, indices, batch, reduce)
            assert_same_bits(ours[places], alone)
            columns = scatter_reduce(torch.ones(9, 300), 0, indices.t(), batch.t().contiguous(), reduce)
            assert_same_bits(columns.t()[places], alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_by_one_index_are_the_rows_by_many(threads):
    torch.set_num_threads(threads)
    for dtype in DTYPES:
        src, index = order_sensitive(600, 601, dtype=dtype), torch.randint(0, 5, (600, 1))
        x = order_sensitive(6, 601, dtype=dtype)
        ours = scatter_reduce(x, 0, index.expand(600, 601), src)
        assert_same_bits(ours, scatter_reduce(x, 0, index.repeat(1, 601), src))
        column = scatter_reduce(x[:, 7], 0, index[:, 0], src[:, 7])
        assert_same_bits(ours[:, 7].contiguous(), column)


def test_low_precision_is_rounded_once_and_the_data_shows_a_change_of_order():
    src, index = torch.rand(300).bfloat16(), torch.zeros(300, dtype=torch.long)
    ours = scatter_reduce(torch.zeros(1, dtype=torch.bfloat16), 0, index, src)
    assert_same_bits(ours, scatter_reduce(torch.zeros(1), 0, index, src.float()).bfloat16())
    src = order_sensitive(300)
    assert not same_bits(*(scatter_reduce(torch.zeros(1), 0, index, s) for s in (src, src.flip(0))))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("include_self", [True, False])
def test_near_float64(reduce, include_self):
    x, src, index = torch.rand(40) + 0.5, torch.rand(500) + 0.5, torch.randint(0, 30, (500,))
    exact = x.double().scatter_reduce(0, index, src.double(), reduce, include_self=include_self)
    ours = scatter_reduce(x, 0, index, src, reduce, include_self)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)


def test_specials_scalars_and_nothing_as_in_eager():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, nan, inf, 1.0, 2.0])
    src, index = torch.tensor([nan, -0.0, 1.0, -inf, 5.0]), torch.tensor([0, 1, 2, 3, 4])
    for reduce in REDUCTIONS:
        for include_self in (True, False):
            stock = x.scatter_reduce(0, index, src, reduce, include_self=include_self)
            ours = scatter_reduce(x, 0, index, src, reduce, include_self)
            torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True)
    scalar = scatter_reduce(torch.tensor(1.0), 0, torch.tensor(0), torch.tensor(2.0))
    assert_same_bits(scalar, torch.tensor(3.0))
    none = torch.empty(0, dtype=torch.long)
    assert_same_bits(scatter_reduce(x[3:], 0, none, src[:0]), x[3:])
    assert scatter_reduce(x[:0], 0, none, src[:0]).shape == (0,)


def test_bad_calls_are_refused_as_in_eager():
    x, one = torch.ones(3, 4), torch.tensor([[3]])
    with pytest.raises(IndexError, match="index 3 is out of bounds for dimension 0 with size 3"):
        scatter_reduce(x, 0, one, x)
    with pytest.raises(IndexError, match="index -4 is out of bounds for dimension 0 with size 3"):
        index_put_add(x, [torch.tensor([0, -4])], x[0])
    with pytest.raises(IndexError, match="too many indices for tensor of dimension 2"):
        index_put_add(x, [one, one, one], x[0, 0])
    with pytest.raises(IndexError, match=r"mask \[2\] at index 0 does not match"):
        index_put_add(x, [torch.ones(2, dtype=torch.bool)], x[0])
    with pytest.raises(RuntimeError, match="larger than x"):
        scatter_reduce(x, 0, torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5))
    with pytest.raises(RuntimeError, match="reduce must be sum, prod, mean, amax or amin, but got median"):
        scatter_reduce(x, 1, one, x, "median")
    with pytest.raises(UnsupportedDtypeError, match=r"^scatter_reduce does not support torch.int64"):
        scatter_reduce(one, 0, one, one)
    index = torch.zeros(2, 4, dtype=torch.long)
    torch.library.opcheck(torch.ops.bi_compile.scatter_reduce.default, (x, 0, index, x, "sum", True))
    torch.library.opcheck(
        torch.ops.bi_compile.index_put_add.default, (x.t(), [None, index[0, :1]], x[:1].t())
    )


def test_golden_bits():
    index = (torch.arange(900) * 7 % 11).view(300, 3)
    results = [
        scatter_reduce(scrambled(11, 3, dtype=dtype), 0, index, scrambled(300, 3, dtype=dtype), reduce, own)
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        for reduce in REDUCTIONS
        for own in (True, False)
    ]
    assert digest(*results) == "2a6b39a3f61fbac8"
