"""What the interpreter of these tests adds to Triton's."""

import pytest
import torch

from tests.interpreted.interpreter import interpreter, tl

triton = pytest.importorskip("triton")


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


def test_values_of_one_dtype_are_not_cast():
    """But for quotients of 16 bits."""
    names = "int1 int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
    semantic = interpreter.TritonSemantic(interpreter.InterpreterBuilder())
    for dtype in (getattr(tl, name) for name in names.split()):
        assert semantic.computation_type_impl(dtype, False, dtype, False, False) == dtype
    x, out = torch.tensor([1, 3, 5, 7], dtype=torch.float16), torch.empty(4)
    _quotients[(1,)](out, x)
    assert out.tolist() == (x.float() / (x * 3).float()).tolist()


def test_shapes_are_kept_from_one_value_to_the_next():
    first, *others = (tl.block_type(tl.float32, x) for x in ([4, 8], [tl.constexpr(4), 8], (4, 8)))
    for block in (first, *others):
        assert (list(block.shape), block.numel, block.scalar) == ([4, 8], 32, tl.float32)
        assert block == first
        assert block != tl.block_type(tl.float32, [8, 4])
        value = tl.tensor(interpreter.TensorHandle(interpreter.np.zeros((4, 8), "f4"), tl.float32), block)
        assert ([x.value for x in value.shape], value.numel.value) == ([4, 8], 32)
    for wrong in ([3], [4, 6]):
        for _ in range(2):
            with pytest.raises(ValueError, match="must be a power of 2"):
                tl.block_type(tl.float32, wrong)


def test_numbers_wider_than_their_dtype_are_refused():
    with pytest.raises(ValueError, match="exceeds dtype"):
        interpreter.TensorHandle(interpreter.np.zeros(4), tl.float32)
