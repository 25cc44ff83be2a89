"""A kernel launched again and again: what Triton works out at each call is worked out once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from bi_compile.templates.gpu.overlap import overlapping

_ALIGNMENT = 16
"""Bytes. Triton compiles a kernel anew where a pointer is not a multiple of it."""


class Descriptor(TensorDescriptor):
    """A matrix for the tensor memory accelerator, which whoever plans the launch has found fit for it.

    base: the tensor; shape and strides: of the matrix, in elements; block_shape: what is read at a time.
    """

    def __post_init__(self) -> None:
        pass  # to ask again at each call takes the host longer than the launch


class Launch:
    """`kernel` on `grid`, with all arguments but descriptors and tensors, which come first in its signature.

    The caller keeps one for each device and each choice of dtypes, shapes and strides: nothing but the
    alignment of the tensors is looked at again.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any]):
        self.kernel, self.arguments = kernel, dict(arguments)
        self._grid = grid
        self._compiled: Any = None
        self._others: tuple[Any, ...] = ()

    def __call__(self, *tensors: torch.Tensor, descriptors: Sequence[Descriptor | None] = ()) -> None:
        addresses = 0
        for tensor in tensors:
            addresses |= tensor.data_ptr()
        aligned = addresses % _ALIGNMENT == 0
        if aligned and self._compiled is not None:
            self._compiled[(*self._grid, 1, 1)[:3]](*descriptors, *tensors, *self._others)
            return
        arguments = {**self.arguments, **overlapping(self.kernel, tensors[0].device)}
        compiled = self.kernel[self._grid](*descriptors, *tensors, **arguments)
        if aligned:
            self._compiled = compiled
            names = getattr(self.kernel, "arg_names", ())[len(descriptors) + len(tensors) :]
            self._others = tuple(arguments[name] for name in names)
