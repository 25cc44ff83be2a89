"""Triton's own Python for values, to the same results in less time: it was half of the interpreter's."""

import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic

_stock_block = core.block_type.__init__
_stock_equal = core.dtype.__eq__
_stock_broadcast = TritonSemantic.broadcast_impl_value
_stock_check_types = TritonSemantic.binary_op_type_checking_impl
_KNOWN: dict[tuple[int, ...], tuple] = {}
"""What values of this shape share: it in numbers, how many they are, it as text, and both in constants."""
_NO_SHAPE, _ONE = core.tuple([]), tl.constexpr(1)


def _block(self, element_ty, shape):
    numbers = tuple([x.value if isinstance(x, tl.constexpr) else x for x in _unwrapped(shape)])
    known = _KNOWN.get(numbers)
    if known is None:
        _stock_block(self, element_ty, shape)
        constants = core.tuple([tl.constexpr(x) for x in numbers])
        known = self.shape, self.numel, str(self.shape), constants, tl.constexpr(self.numel)
        _KNOWN[numbers] = known
    self.element_ty = element_ty
    self.shape, self.numel = known[:2]
    self.name = f"<{known[2]}, {element_ty}>"
    self.known = known


def _tensor(self, handle, type):
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = type.known[3:] if type.is_block() else (_NO_SHAPE, _ONE)


def _unwrapped(value):
    """The commonest first."""
    if isinstance(value, core.constexpr):
        return value.value
    if isinstance(value, list):
        return [_unwrapped(x) for x in value]
    if isinstance(value, tuple):
        return tuple([_unwrapped(x) for x in value])
    if isinstance(value, core.tuple):
        return core.tuple([_unwrapped(x) for x in value])
    return value


def _equal(self, other):
    return self is other or _stock_equal(self, other)


def _broadcast(self, left, right):
    return (left, right) if left.shape is right.shape else _stock_broadcast(self, left, right)


def _check_types(
    self, left, right, allow_left=False, allow_right=False, arithmetic_check=True, div_or_mod=False
):
    """Nothing is cast where both have one dtype, but for quotients of 16 bits."""
    if not div_or_mod and isinstance(left, tl.tensor) and isinstance(right, tl.tensor):
        dtype = left.dtype
        if dtype is right.dtype and not dtype.is_ptr() and not dtype.is_fp8():
            return self.broadcast_impl_value(left, right)
    return _stock_check_types(self, left, right, allow_left, allow_right, arithmetic_check, div_or_mod)


core.block_type.__init__ = _block
core.tensor.__init__ = _tensor
core.dtype.__eq__ = _equal
core._unwrap_if_constexpr = _unwrapped
TritonSemantic.broadcast_impl_value = _broadcast
TritonSemantic.binary_op_type_checking_impl = _check_types
