"""A model in float64 throughout, also where its code asks for fp32, as that of norms and time steps does."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from bi_compile.testing.trees import map_tensors


def in_double(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of the same inputs, computed in float64.

    A module is copied and cast; any other callable must compute in the dtype of its inputs. Casts to fp32
    on the way are casts to float64, and so is the default dtype. A callable that does not run like that, as
    one with a kernel for fp32 alone, runs with its own casts, and a UserWarning says so.
    """
    exact = copy.deepcopy(function).double() if isinstance(function, torch.nn.Module) else function

    def run(*inputs: Any) -> Any:
        wide = map_tensors(inputs, double)
        try:
            with _Widened():
                return exact(*wide)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            result = exact(*wide)  # which raises what has nothing to do with casts
            warnings.warn(f"the reference keeps its casts to fp32: {error}", stacklevel=2)
            return result

    return run


def double(x: torch.Tensor) -> torch.Tensor:
    """In float64 or complex128; integers as they are."""
    return x.to(torch.complex128) if x.is_complex() else x.double() if x.is_floating_point() else x


_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _wider(x: Any) -> Any:
    return _WIDER.get(x, x) if isinstance(x, torch.dtype) else x


class _Widened(TorchFunctionMode):
    """Within, what asks for fp32 or for nothing gets float64."""

    def __enter__(self) -> Any:
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._default)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {name: _wider(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wider, args), **named)
