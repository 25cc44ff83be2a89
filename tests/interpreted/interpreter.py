"""Triton's interpreter for tests without a GPU: kernels on CPU tensors, with the roundings of the hardware.

Import this before any module of ours that defines kernels. It mends what the interpreter of Triton 3.6 gets
wrong: casts to bf16 truncate, `tl.fma` rounds twice, loop bounds that are scalars of the program fail with
numpy 2.4, `tl.dot` multiplies the bit patterns of bf16 and sums in numpy's order (see `use_dot`).

Where a CUDA device is there, `tests/gpu` runs the kernels on it, in the same process: no interpreter then.
"""

import os
from collections.abc import Callable
from functools import cache

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("kernels run on the device instead", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"

numpy = pytest.importorskip("numpy")
tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")

from bi_compile.templates.attention.oracle import fma  # noqa: E402
from tests.interpreted import shortcuts  # noqa: E402

_Builder = interpreter.InterpreterBuilder
_stock_cast = _Builder.cast_impl
_stock_patch_languages = interpreter._patch_lang
_stock_patch = interpreter._patch_lang_tensor


def _wide(handle):
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(numpy.uint32) << numpy.uint32(16)).view(numpy.float32)
    return handle.data


def use_dot(dot: Callable[..., torch.Tensor]) -> None:
    """From now on `tl.dot` of 16-bit and fp32 blocks is dot(a, b, total, dtype, precision).

    a [M, K] and b [K, N] are widened to fp32, total is fp32; dtype and precision are Triton's names.
    """

    def create_dot(self, a, b, total, precision, imprecise):
        wide = [torch.from_numpy(numpy.ascontiguousarray(_wide(x), numpy.float32)) for x in (a, b, total)]
        name = str(precision).rsplit(".", 1)[-1].lower()
        out = dot(*wide, str(a.dtype.scalar), name)
        return interpreter.TensorHandle(out.numpy(), total.dtype.scalar)

    _Builder.create_dot = create_dot


def _to_bf16(x):
    bits = numpy.ascontiguousarray(x, numpy.float32).view(numpy.uint32)
    rounded = (bits + numpy.uint32(0x7FFF) + ((bits >> numpy.uint32(16)) & numpy.uint32(1))) >> numpy.uint32(
        16
    )
    return numpy.where(numpy.isnan(x), numpy.uint32(0x7FFF), rounded).astype(numpy.uint16)


def _cast(self, source, target):
    old, new = source.dtype.scalar, target.scalar
    if old == tl.bfloat16 and new.is_floating():
        wide = _wide(source)
        data = source.data if new == tl.bfloat16 else wide.astype(interpreter._get_np_dtype(target))
        return interpreter.TensorHandle(data, new)
    if new == tl.bfloat16 and old.is_floating():
        # From fp64 once to fp32 and once more: no kernel narrows fp64 to bf16.
        return interpreter.TensorHandle(_to_bf16(source.data.astype(numpy.float32)), new)
    return _stock_cast(self, source, target)


def _fma(self, x, y, z):
    if x.data.dtype != numpy.float32:
        return interpreter.TensorHandle(x.data * y.data + z.data, z.dtype.scalar)
    tensors = [torch.from_numpy(numpy.ascontiguousarray(h.data)) for h in (x, y, z)]
    return interpreter.TensorHandle(fma(*tensors).numpy(), z.dtype.scalar)


@cache
def _languages_of(fn):
    return [x for x in fn.__globals__.values() if any(x is language for language in (tl, tl.core))]


def _patch_languages(fn):
    """Not anew, as Triton does, for every function that a kernel calls: that takes half of the time."""
    if any(tl.core.is_builtin(language.load) for language in _languages_of(fn)):
        return _stock_patch_languages(fn)
    return interpreter._LangPatchScope()


_stock_numpy_dtype = interpreter._get_np_dtype
_NUMPY_DTYPES = {}


def _numpy_dtype(of):
    """Triton's own makes a dict of all dtypes at each call."""
    name = of.scalar.name
    if name not in _NUMPY_DTYPES:
        _NUMPY_DTYPES[name] = _stock_numpy_dtype(of)
    return _NUMPY_DTYPES[name]


def _handle(self, data, dtype, attr=None):
    self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
    if data.itemsize > 1 and not dtype.is_ptr() and data.itemsize * 8 > dtype.primitive_bitwidth:
        self.__post_init__()  # Triton's own, which says so


def _splat(self, block, value):
    return interpreter.TensorHandle(
        numpy.full(block.numbers, value.data, _numpy_dtype(value.dtype)), value.dtype
    )


def _patch_attribute(scope_of, name, member, builder, scope):
    """Without the wrapper around each of Triton's functions that only asks whether it runs in a kernel."""
    semantic, function = interpreter.TritonSemantic(builder), getattr(member, "__wrapped__", member)

    def patched(*args, **kwargs):
        kwargs["_semantic"] = semantic
        return function(*args, **kwargs)

    scope.set_attr(scope_of, name, patched)


def _refuse_overflow(self, lhs, rhs, binary_op):
    """Triton's own works the operation out once more in its language, takes longer than the kernel, and tells
    nothing where kernels are not debugged. Unsigned integers may wrap around.
    """
    scalar = lhs.type.scalar
    if scalar.is_int_signed() and scalar.int_bitwidth < 64:
        exact = getattr(numpy, _NUMPY_NAMES[binary_op.__name__])(
            lhs.handle.data.astype(numpy.int64), rhs.handle.data.astype(numpy.int64)
        )
        fits = (exact >= scalar.get_int_min_value()) & (exact <= scalar.get_int_max_value())
        assert fits.all(), f"{scalar} overflows in {binary_op.__name__}"


_NUMPY_NAMES = {"add": "add", "sub": "subtract", "mul": "multiply"}


def _patch_tensor(tensor, scope):
    _stock_patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


shortcuts.for_the_interpreter()
tl.block_type.to_ir = lambda self, builder: self
interpreter._patch_lang = _patch_languages
interpreter._patch_attr = _patch_attribute
interpreter.TensorHandle.__init__ = _handle
interpreter._patch_lang_tensor = _patch_tensor
interpreter.TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow
interpreter._get_np_dtype = _numpy_dtype
_Builder.cast_impl = _cast
_Builder.create_fma = _fma
_Builder.create_splat = _splat
for _name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
    setattr(_Builder, f"create_{_name}", lambda self, source, target: self.cast_impl(source, target))


def numpy_function(name: str):
    """What stands in for libdevice's function in the interpreter, on tensors."""
    return lambda x: torch.from_numpy(numpy.asarray(getattr(numpy, name)(x.numpy())))
