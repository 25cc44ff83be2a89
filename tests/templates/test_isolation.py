"""The isolated op: every sample gets the result of the same call on its own part."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bi_compile.templates.isolation import contract, oracle
from bi_compile.templates.isolation.contract import encode, op_of
from tests.bits import assert_same_bits

X = torch.randn(6, 5, 4)


def isolated(tensors, numbers, call, dims, rows, results):
    """By the C++ loop, which must have taken the call, and by the oracle: the same bits."""
    assert contract._boxed(call) is not None
    got = torch.ops.bi_compile.isolated.default(tensors, numbers, call, dims, rows, results)
    want = oracle.isolated(contract._decoded(call), tensors, numbers, dims, rows, results)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)
        assert a.is_contiguous()
    return got


def call_of(op, *args, **kwargs):
    return encode(op, list(args), kwargs)


def test_each_sample_gets_the_call_on_its_own_part():
    call = call_of(torch.ops.aten.cumsum.default, {"t": 0}, 1)
    (result,) = isolated([X], [], call, [0], [1], [0])
    for sample in range(6):
        assert torch.equal(result[sample : sample + 1], X[sample : sample + 1].cumsum(1))


def test_rows_of_a_sample_stay_together():
    call = call_of(torch.ops.aten.cumsum.default, {"t": 0}, 0)
    (result,) = isolated([X], [], call, [0], [3], [0])
    assert torch.equal(result, torch.cat([X[:3].cumsum(0), X[3:].cumsum(0)]))


def test_strides_do_not_show():
    call = call_of(torch.ops.aten._fft_r2c.default, {"t": 0}, [1], 0, True)
    strided = X.transpose(1, 2).contiguous().transpose(1, 2)
    (a,), (b,) = (isolated([x], [], call, [0], [1], [0]) for x in (X, strided))
    assert torch.equal(torch.view_as_real(a), torch.view_as_real(b))


@torch.library.custom_op("bi_test::address", mutates_args=())
def address(x: torch.Tensor) -> torch.Tensor:
    return torch.full((1,), x.data_ptr() % 64)


@address.register_fake
def _(x):
    return torch.empty(1, dtype=torch.int64)


def test_the_place_in_memory_does_not_show():
    """Samples of 37 numbers begin at any multiple of four bytes, on which libraries choose how they load."""
    x = torch.randn(40, 37)
    (seen,) = isolated([x], [], call_of(torch.ops.bi_test.address.default, {"t": 0}), [0], [1], [0])
    assert torch.equal(seen, torch.zeros(40, dtype=torch.int64))
    # Control: the parts lie elsewhere.
    assert {part.data_ptr() % 64 for part in x.split(1)} > {0}


def test_results_that_share_the_memory_of_the_input_are_kept():
    """An op may return its input: the next sample must not find its part overwritten."""
    call = call_of(torch.ops.aten.alias.default, {"t": 0})
    before = X.clone()
    (result,) = isolated([X], [], call, [0], [1], [0])
    assert torch.equal(result, before)
    result.zero_()
    assert torch.equal(X, before)


def test_a_tensor_may_be_given_twice():
    call = call_of(torch.ops.aten.stack.default, [{"t": 0}, {"t": 0}, {"t": 1}], 1)
    (result,) = isolated([X, 2 * X], [], call, [0, 0], [1, 1], [0])
    assert torch.equal(result, torch.stack([X, X, 2 * X], 1))


def test_shared_tensors_and_sizes_reach_every_sample():
    call = call_of(torch.ops.aten.linalg_solve_triangular.default, {"t": 0}, {"t": 1}, upper=True)
    triangle = torch.eye(5).add(torch.ones(5, 5).triu()).expand(1, 5, 5)
    (result,) = isolated([triangle, X], [], call, [-1, 0], [1, 1], [0])
    assert torch.allclose(triangle @ result, X, atol=1e-5)


def test_sizes_and_defaults_reach_the_op():
    """Numbers of the graph, alone and in a list; what the call leaves out is as the schema has it."""
    call = call_of(torch.ops.aten.repeat.default, {"t": 0}, [1, {"n": 0}, {"n": 1}])
    (result,) = isolated([X], [2, 3], call, [0], [1], [0])
    assert torch.equal(result, X.repeat(1, 2, 3))
    call = call_of(torch.ops.aten.roll.default, {"t": 0}, [{"n": 0}], [1])
    assert torch.equal(isolated([X], [2], call, [0], [1], [0])[0], X.roll(2, 1))
    call = call_of(torch.ops.aten.nan_to_num.default, {"t": 0}, posinf=2.5)
    holes = X.masked_fill(X > 0, float("inf"))
    assert torch.equal(isolated([holes], [], call, [0], [1], [0])[0], holes.nan_to_num(posinf=2.5))


def test_calls_that_only_python_converts_are_made_from_python():
    """A whole number where the schema wants a fraction, a list of tensors and gaps."""
    for op, args in (
        (torch.ops.aten.nan_to_num.default, ({"t": 0}, 2)),
        (torch.ops.aten.index.Tensor, ({"t": 0}, [None, {"t": 1}])),
    ):
        call = call_of(op, *args)
        assert contract._boxed(call) is None
        tensors = [X, torch.tensor([1, 0])]
        (result,) = torch.ops.bi_compile.isolated.default(tensors, [], call, [0, -1], [1, 1], [0])
        assert torch.equal(result, X.nan_to_num(2.0) if "nan" in call else X[:, [1, 0]])


def test_parts_are_converted_first_where_the_call_says_so():
    """Complex numbers made of real ones: exact, and so the same before the batch is cut and after."""
    call = call_of(torch.ops.aten._fft_c2c.default, {"t": 0, "as": torch.complex64}, [1], 0, True)
    (result,) = isolated([X], [], call, [0], [1], [0])
    alone = [torch.fft.fft(x.to(torch.complex64), dim=1) for x in X.split(1)]
    assert_same_bits(result, torch.cat(alone))


def test_lazily_conjugated_results_are_resolved():
    z = torch.complex(X, X + 1)
    (result,) = isolated([z], [], call_of(torch.ops.aten._conj.default, {"t": 0}), [0], [1], [0])
    assert_same_bits(result, z.conj().resolve_conj())


@torch.library.custom_op("bi_test::positive_ones", mutates_args=())
def positive_ones(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0]


@positive_ones.register_fake
def _(x):
    return x.new_empty(torch.library.get_ctx().new_dynamic_size())


def test_results_of_several_sizes_are_refused():
    call = call_of(torch.ops.bi_test.positive_ones.default, {"t": 0})
    x = torch.tensor([[1.0, -1], [1, 1]])
    with pytest.raises(RuntimeError, match=r"one sample's result is \[2\], another's \[1\]"):
        torch.ops.bi_compile.isolated.default([x], [], call, [0], [1], [0])


def test_no_samples_give_the_op_on_nothing():
    call = call_of(torch.ops.aten.cumsum.default, {"t": 0}, 1)
    (result,) = isolated([X[:0]], [], call, [0], [1], [0])
    assert result.shape == (0, 5, 4)


def test_dtypes_travel_in_the_call_and_other_objects_do_not():
    call = call_of(torch.ops.aten.cumsum.default, {"t": 0}, 1, dtype=torch.float64)
    assert isolated([X], [], call, [0], [1], [0])[0].dtype == torch.float64
    assert op_of(call) == "aten.cumsum.default"
    with pytest.raises(TypeError, match="cannot be kept in a call"):
        call_of(torch.ops.aten.cumsum.default, object())


def large(samples):
    """One of the results that the CPU's memory is kept for: 128 KB and more."""
    x = torch.randn(samples, 300, 300)
    call = call_of(torch.ops.aten.cumsum.default, {"t": 0}, 2)
    (result,) = torch.ops.bi_compile.isolated.default([x], [], call, [0], [1], [0])
    return x.cumsum(2), result


def test_memory_of_a_large_result_is_used_again_once_it_is_free():
    expected, result = large(4)
    place = result.data_ptr()
    assert torch.equal(result, expected)
    other_expected, other = large(4)
    assert other.data_ptr() != place, "the first result is still alive"
    assert torch.equal(result, expected)
    assert torch.equal(other, other_expected)
    del result
    smaller_expected, smaller = large(3)
    assert smaller.data_ptr() == place, "a block of up to twice the size will do"
    assert torch.equal(smaller, smaller_expected)
    assert torch.equal(other, other_expected)


def test_a_large_result_is_a_tensor_like_any_other():
    expected, result = large(4)
    part = result[1:3]
    del result
    large(4)
    assert torch.equal(part, expected[1:3]), "a view keeps the memory of the whole"
    _, result = large(2)
    assert result.data_ptr() % 64 == 0
    assert result.resize_(5, 300, 300).shape == (5, 300, 300)
    assert torch.equal(pickle.loads(pickle.dumps(part)), part)
    assert torch.equal(part.share_memory_(), expected[1:3])


def test_threads_share_no_memory_of_living_results():
    with ThreadPoolExecutor(4) as pool:
        for expected, result in pool.map(large, [1, 2, 3, 4] * 8):
            assert torch.equal(result, expected)


def test_not_more_than_64_mb_are_kept():
    """The oldest blocks go: 60 results of 4.3 MB are 259 MB, all free at once."""
    results = [large(12) for _ in range(60)]
    assert all(torch.equal(result, expected) for expected, result in results)
    del results
    assert 59 << 20 < torch.ops.bi_compile.isolated_memory() <= 64 << 20
