"""What is called in a check: a function as it is, under the canonical ops, or compiled."""

import itertools
from collections.abc import Callable
from typing import Any

import torch

_numbers = itertools.count()


def compiled(fn: Callable[..., Any], backend: Any, *, dynamic: bool | None = None) -> Callable[..., Any]:
    """`torch.compile` of fn, with a code object and a name that no other function has.

    Dynamo counts the graphs that it has made of one code object, up to its `recompile_limit`. All instances
    of a class have one `forward`, and PyTorch's own modules and ops enter Dynamo by one function, so a
    process that checks nine of them would be refused the ninth. And by its place and name it remembers the
    sizes a function has had, and takes those that change for symbolic: also features of another model.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    run.__code__ = run.__code__.replace(co_name=f"run_{next(_numbers)}")
    return torch.compile(run, backend=backend, dynamic=dynamic)


def run_by(fn: Callable[..., Any], backend: str, *, dynamic: bool | None = None) -> Callable[..., Any]:
    """fn as it is for "eager", under `bi_compile.eager()` for "canonical", else compiled by that backend."""
    if backend == "eager":
        return fn
    if backend != "canonical":
        return compiled(fn, backend, dynamic=dynamic)
    import bi_compile

    return bi_compile.eager()(fn)


def code_of_run(backend: str, *, dynamic: bool | None = None) -> str:
    """`run_by(model, backend)` as code of a program of its own."""
    named = {"eager": "model", "canonical": "bi_compile.eager()(model)"}
    how = "" if dynamic is None else f", dynamic={dynamic}"
    return named.get(backend, f'torch.compile(model, backend="{backend}"{how})')
