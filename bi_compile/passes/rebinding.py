"""PyTorch's own Python functions with our ops inside: a copy in which global names mean something else."""

import types
from collections.abc import Callable
from typing import Any


def rebound(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """A copy of a Python function in which global names mean something else."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = __name__
    return copy
