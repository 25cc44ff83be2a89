"""Compiling for a check, whatever else the process has compiled."""

from collections.abc import Callable
from typing import Any

import torch


def compiled(fn: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """`torch.compile(fn, backend=backend)`, with a code object that no other function has.

    Dynamo counts the graphs that it has made of one code object, up to its `recompile_limit`. All instances
    of a class have one `forward`, and PyTorch's own modules and ops enter Dynamo by one function, so a
    process that checks nine of them would be refused the ninth.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    run.__code__ = run.__code__.replace()
    return torch.compile(run, backend=backend)
