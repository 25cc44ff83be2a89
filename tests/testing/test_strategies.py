"""The strategies draw what they promise, find what they are for, and shrink it."""

import contextlib
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from bi_compile.testing import BatchVarianceError, assert_batch_invariant
from bi_compile.testing.strategies import batches, cuts, extents, neighbours, paddings, partitions, tensors
from tests.bits import same_bits

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
VALUES = ("normal", "cancelling", "wide", "subnormal")
SEARCH = settings(max_examples=300, database=None, derandomize=True)


@given(x=tensors(dtypes=DTYPES))
def test_tensors_are_finite_and_of_the_dtypes_asked_for(x):
    assert x.dtype in DTYPES
    assert 1 <= x.dim() <= 3
    assert all(1 <= n <= 300 for n in x.shape)
    assert x.isfinite().all()


@given(x=tensors((3, extents(20), st.sampled_from((5, 7)))))
def test_extents_are_numbers_or_strategies(x):
    assert x.shape[0] == 3
    assert x.shape[1] <= 20
    assert x.shape[2] in (5, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_squares_of_wide_values_stay_finite(dtype):
    @given(x=tensors((8, 65), dtypes=[dtype], values=["wide"]))
    def check(x):
        assert (x * x).isfinite().all()
        exponents = torch.frexp(x.double()).exponent
        assert exponents.max() - exponents.min() >= 8

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormals_are_there(dtype):
    @given(x=tensors((8, 65), dtypes=[dtype], values=["subnormal"]))
    def check(x):
        least = torch.finfo(dtype).tiny
        assert ((x.double().abs() < least) & (x != 0)).any()
        assert (x.double().abs() >= least).any()
        assert x.double().abs().max() < 2 * least

    check()


@given(x=tensors((4, extents()), dtypes=DTYPES, values=["cancelling"], layouts=["contiguous"]))
def test_large_values_cancel_exactly(x):
    pairs = x.shape[-1] // 3
    assert ((x.abs() >= 512).sum(-1) == 2 * pairs).all()
    ordered = x.sort(-1).values
    assert torch.equal(ordered[:, :pairs], -ordered.flip(-1)[:, :pairs])


def chain(x):
    total = torch.zeros((), dtype=x.dtype)
    for value in x:
        total = total + value
    return total


@pytest.mark.parametrize("kind", ["normal", "cancelling", "wide"])
def test_another_order_of_a_sum_shows(kind):
    x = find(
        tensors([extents()], values=[kind]),
        lambda x: not same_bits(chain(x), chain(x.flip(0))),
        settings=SEARCH,
    )
    assert 3 <= x.numel() <= 16, "two values have one sum, and few more than three are left after shrinking"


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormals")
def test_flushed_subnormals_show():
    def flushed(x):
        torch.set_flush_denormal(True)
        try:
            return x * 1.0
        finally:
            torch.set_flush_denormal(False)

    find(tensors([extents()], values=["subnormal"]), lambda x: not same_bits(flushed(x), x), settings=SEARCH)

    @given(x=tensors([extents()], values=["normal"]))
    def tame(x):
        assert same_bits(flushed(x), x)

    tame()


def test_every_layout_is_drawn_and_nan_lies_beside_the_view():
    def layouts(name, condition):
        return find(tensors((3, 5), layouts=[name]), condition, settings=SEARCH)

    assert layouts("contiguous", lambda x: x.is_contiguous() and x.storage_offset() == 0) is not None
    assert layouts("transposed", lambda x: x.stride() == (1, 3)) is not None
    for name, stride in (("offset", (5, 1)), ("strided", (10, 2)), ("cut out", (12, 1))):
        x = layouts(name, lambda x, stride=stride: x.stride() == stride)
        memory = torch.tensor(x.untyped_storage().tolist(), dtype=torch.uint8).view(x.dtype)
        assert x.isfinite().all()
        assert int(memory.isnan().sum()) == memory.numel() - x.numel() > 0


def test_nan_and_infinities_come_by_option_alone():
    for option, test in (("nan", torch.isnan), ("inf", torch.isposinf), ("inf", torch.isneginf)):
        x = find(tensors((4, 9), **{option: True}), lambda x, test=test: bool(test(x).any()), settings=SEARCH)
        assert x.shape == (4, 9)
    find(tensors((4, 9), nan=True), lambda x: bool(x.isfinite().all()), settings=SEARCH)

    @given(x=tensors((4, 9), inf=True))
    def no_nan(x):
        assert not x.isnan().any()

    no_nan()


@given(members=batches(5, max_size=9))
def test_batches_name_samples(members):
    assert 1 <= len(members) <= 9
    assert all(0 <= sample < 5 for sample in members)


@given(members=batches(5, min_size=2, repeats=False))
def test_batches_without_repeats(members):
    assert 2 <= len(members) == len(set(members)) <= 5


def test_batches_come_in_every_order_and_shrink():
    assert find(batches(8), lambda m: list(m) != sorted(m), settings=SEARCH) == (1, 0)
    assert find(batches(8), lambda m: len(m) > 2, settings=SEARCH) == (0, 0, 0)
    find(batches(8), lambda m: len(m) > 8, settings=SEARCH)


def test_stock_products_are_refuted_and_rows_one_by_one_are_not():
    torch.manual_seed(0)
    model = torch.nn.Linear(301, 19).requires_grad_(False)
    samples = tensors((8, 301), layouts=["contiguous"])

    def by_row(x):
        # Copied, because MKL's bits also depend on where in memory a row starts.
        return torch.cat([model(row.unsqueeze(0).clone()) for row in x])

    def varies(fn, x, members):
        together = fn(x[list(members)])
        return any(
            not same_bits(together[place], fn(x[sample : sample + 1])[0])
            for place, sample in enumerate(members)
        )

    _, members = find(st.tuples(samples, batches(8)), lambda drawn: varies(model, *drawn), settings=SEARCH)
    assert len(members) == 2

    @given(x=samples, members=batches(8))
    def rows_alone_agree(x, members):
        assert not varies(by_row, x, members)

    rows_alone_agree()


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(x=tensors((4, extents(70)), nan=True, inf=True))
def test_they_serve_the_assertion(x):
    x = x.clone()
    x[:, 0] = torch.arange(4.0)  # no two samples are equal
    assert_batch_invariant(lambda x: x * 3 + 1, x, sizes=(2, 3))


def test_what_is_unknown_is_refused():
    for wrong, message in (
        (tensors((2,), values=["huge"]), r"values \['huge'\] unknown"),
        (tensors((2,), layouts=["sparse"]), r"layouts \['sparse'\] unknown"),
        (tensors((2,), dtypes=[torch.int64]), r"dtypes \[torch.int64\] not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            find(wrong, lambda x: True, settings=SEARCH)
    with pytest.raises(ValueError, match="no batch of 3 samples has 4 to 3 members"):
        batches(3, min_size=4, repeats=False)


def test_hypothesis_is_imported_when_used_alone():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from bi_compile.testing import assert_batch_invariant, bisect\n"
        "try:\n    import bi_compile.testing.strategies\n"
        "except ImportError as error:\n    assert 'pip install hypothesis' in str(error), error\n"
        "else:\n    raise SystemExit('imported without hypothesis')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@given(sizes=st.integers(1, 30).flatmap(cuts))
def test_cuts_add_up(sizes):
    assert all(size > 0 for size in sizes)
    assert sum(sizes) <= 30


@given(parts=partitions(7))
def test_partitions_hold_every_sample_once(parts):
    assert sorted(sample for part in parts for sample in part) == list(range(7))
    assert all(parts)


def test_cuts_and_partitions_shrink_to_one_piece_in_order():
    assert find(cuts(9), lambda sizes: True, settings=SEARCH) == (9,)
    assert find(partitions(4), lambda parts: True, settings=SEARCH) == ((0, 1, 2, 3),)
    parts = find(partitions(4), lambda parts: len(parts) > 1, settings=SEARCH)
    assert parts == ((0,), (1, 2, 3))


@given(pad=paddings(4, 7, sides=("right", "left"), fills=(0.0, (5.0, 0))))
def test_paddings_pass_the_check_where_they_are_masked(pad):
    x = torch.arange(28.0).reshape(4, 7) + 1
    mask = torch.arange(7) < torch.tensor(pad.lengths)[:, None]
    mask = mask.flip(1) if pad.side == "left" else mask
    assert all(1 <= length <= 7 for length in pad.lengths)
    fewer = {"padding": pad, "sizes": (2, 5), "trials": 1, "neighbours": ()}
    assert_batch_invariant(lambda x, mask: (x * mask).double().sum(1), x, mask, **fewer)


def test_a_model_that_counts_its_padding_is_refuted():
    def varies(pad):
        with contextlib.suppress(BatchVarianceError):
            x = torch.arange(9.0).reshape(3, 3)
            return not assert_batch_invariant(lambda x: x.mean(1), x, padding=pad, neighbours=())
        return True

    assert find(paddings(3, 3), varies, settings=SEARCH).lengths == (3, 3, 2)
    assert find(paddings(3, 3, sides=("left", "right")), lambda pad: True).lengths == (3, 3, 3)


@given(drawn=neighbours(torch.tensor([1.5, -2.0, 0.25]), max_size=5))
def test_the_sample_stands_among_its_neighbours(drawn):
    batch, position = drawn
    assert 1 <= len(batch) <= 5
    assert batch[position].tolist() == [1.5, -2.0, 0.25]


def test_neighbours_of_all_kinds_are_drawn():
    sample = torch.tensor([1.5, -2.0])
    for kind in (torch.isnan, torch.isposinf, lambda row: row == 3e4, lambda row: row == sample):
        batch, _ = find(neighbours(sample), lambda b, kind=kind: len(b[0]) > 1 and kind(b[0][1]).all())
        assert len(batch) == 2
    batch, position = find(neighbours(torch.arange(4)), lambda b: not (b[0] == b[0][0]).all())
    assert sorted(batch[1 - position].tolist()) == [0, 1, 2, 3], "integers stay among those of the sample"


def test_a_model_that_sees_its_neighbours_is_refuted():
    """The control of `neighbours`: a shared scale."""
    sample = torch.tensor([1.5, -2.0])
    batch, _ = find(
        neighbours(sample),
        lambda b: not same_bits((b[0] / b[0].abs().amax())[b[1]], sample / sample.abs().amax()),
        settings=SEARCH,
    )
    assert len(batch) == 2
