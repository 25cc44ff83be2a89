"""What the interpreter of these tests adds to Triton's."""

import itertools

import pytest
import torch

from tests.interpreted.interpreter import interpreter, numpy, tl

triton = pytest.importorskip("triton")

from tests.interpreted import shortcuts  # noqa: E402


@triton.jit
def _squared(out, n):
    tl.store(out, n * n)


def test_an_integer_that_overflows_stops_a_kernel():
    """Such as an offset in a large tensor. Triton's own check stays silent, and the number wraps around."""
    out = torch.zeros(1, dtype=torch.int32)
    _squared[(1,)](out, 46340)
    assert out.item() == 46340**2
    with pytest.raises(Exception, match="int32 overflows in mul"):
        _squared[(1,)](out, 46341)


@triton.jit
def _quotients(out, x):
    i = tl.arange(0, 4)
    numbers = tl.load(x + i)
    tl.store(out + i, numbers / (numbers + numbers + numbers))
    tl.store(out + 4 + i, numbers / 3)


def test_quotients_of_16_bits_are_those_of_32():
    x, out = torch.tensor([1, 3, 5, 7], dtype=torch.float16), torch.empty(8)
    _quotients[(1,)](out, x)
    assert out.tolist() == [*(x.float() / (x * 3).float()).tolist(), *(x.float() / 3).tolist()]


def _value(dtype, *shape: int):
    data = numpy.ones(shape or 1, interpreter._get_np_dtype(dtype))
    return tl.tensor(
        interpreter.TensorHandle(data, dtype), tl.block_type(dtype, [*shape]) if shape else dtype
    )


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", sorted(shortcuts._ORDINARY))
def test_types_and_shapes_are_those_of_triton(name, monkeypatch):
    """Of two values, and of a value and a number: what is not worked out anew is what would be."""
    semantic, dtype = interpreter.TritonSemantic(interpreter.InterpreterBuilder()), tl.dtype(name)

    def told(check, *asked) -> list | str:
        try:
            return [(x.type, x.handle.data.dtype, x.handle.data.tolist()) for x in check(semantic, *asked)]
        except (ValueError, AttributeError) as error:
            return str(error)

    ones = [_value(dtype, *shape) for shape in ((4, 8), (4, 1), (1, 8), (8,), (8, 4), ())]
    numbers = [3, -(2**31), 2**31, 2**40, 2.5, 1e300, True]
    for left, right in itertools.product(ones, [*ones, *numbers]):
        for arithmetic, quotient in ((True, False), (False, False), (True, True)):
            asked = (left, right, False, False, arithmetic, quotient)
            found = told(shortcuts._check_types, *asked)
            with monkeypatch.context() as stock:
                stock.setattr(interpreter.TritonSemantic, "broadcast_impl_value", shortcuts._stock_broadcast)
                assert found == told(shortcuts._stock_check_types, *asked), asked


def test_shapes_are_kept_from_one_value_to_the_next():
    first, *others = (tl.block_type(tl.float32, x) for x in ([4, 8], [tl.constexpr(4), 8], (4, 8)))
    for block in (first, *others):
        assert (list(block.shape), block.numel, block.scalar) == ([4, 8], 32, tl.float32)
        assert block == first
        assert block != tl.block_type(tl.float32, [8, 4])
        value = tl.tensor(interpreter.TensorHandle(numpy.zeros((4, 8), "f4"), tl.float32), block)
        assert ([x.value for x in value.shape], value.numel.value) == ([4, 8], 32)
    for wrong in ([3], [4, 6]):
        for _ in range(2):
            with pytest.raises(ValueError, match="must be a power of 2"):
                tl.block_type(tl.float32, wrong)


def test_numbers_wider_than_their_dtype_are_refused():
    with pytest.raises(ValueError, match="exceeds dtype"):
        interpreter.TensorHandle(numpy.zeros(4), tl.float32)
