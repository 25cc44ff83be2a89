"""The isolated op: every sample gets the result of the same call on its own part."""

import pytest
import torch

from bi_compile.templates.isolation.contract import encode, op_of

isolated = torch.ops.bi_compile.isolated.default
X = torch.randn(6, 5, 4)


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
