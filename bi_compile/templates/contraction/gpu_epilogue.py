"""The programs of `epilogue.py` as Triton functions, which the kernels of products call on what they store.

A step is the expression that Inductor's code has for the op of its name, rounded as it rounds there.
"""

import functools
import linecache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from bi_compile.templates.contraction import epilogue
from bi_compile.templates.contraction import gpu_kernels as kernels
from bi_compile.templates.contraction.epilogue import Step
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.pointwise import gpu_functions

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "le": "<=", "lt": "<", "ge": ">=", "gt": ">"}
_AT_A_TIME = 1024
_NAMES = {torch.bfloat16: "tl.bfloat16", torch.float16: "tl.float16", torch.float32: "tl.float32"}


@functools.cache
def function(program: str | None, dtype: torch.dtype) -> Any:
    """f(product, its other half, addresses of `other`, mask) -> the result, in fp32, for products of a dtype.

    The half is not read unless the program cuts.

    None where there is no program.
    """
    if program is None:
        return None
    source = _source(program, dtype)
    # Triton reads the source of a function: this is where Python looks for one that stands in no file.
    file = f"<bi_compile epilogue {program} of {dtype}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope = {"tl": tl, "triton": triton, "libdevice": libdevice, "__name__": __name__}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope["finished"])


def finishing(program: str, dtype: torch.dtype, batch: int, m: int, n: int) -> Launch:
    """The kernel of a program behind the stored product [batch, m, n]: launched with it, `other` and out."""
    choice = {"BLOCK": _AT_A_TIME, "EPILOGUE": function(program, dtype), **COMPILATION}
    grid = (triton.cdiv(batch * m * n, _AT_A_TIME),)
    return Launch(kernels.finish, grid, {"batch": batch, "M": m, "N": n, **choice})


def _source(program: str, dtype: torch.dtype) -> str:
    """16-bit values are kept in fp32, rounded to their dtype by every step that computes."""
    steps, found = epilogue.parse(program), epilogue.dtypes(program, dtype)
    lines = ["def finished(p, q, at, inside):"]
    if epilogue.reads_other(program):
        lines.append("    o = tl.load(at, mask=inside, other=0.0).to(tl.float32)")
    for i, step in enumerate(steps, 1):
        own = next(found[a] for a in step.arguments[step.name == "where" :] if isinstance(a, str))
        value = _expression(step, own)
        if step.name not in ("where", *epilogue.COMPARISONS):
            value = _rounded(value, found[f"t{i}"])
        lines.append(f"    t{i} = {value}")
    return "\n".join([*lines, f"    return t{len(steps)}", ""])


def _rounded(value: str, dtype: torch.dtype) -> str:
    return value if dtype == torch.float32 else f"({value}).to({_NAMES[dtype]}).to(tl.float32)"


def _expression(step: Step, dtype: torch.dtype) -> str:
    arguments = [
        a if isinstance(a, str) else repr(torch.tensor(a, dtype=dtype).item()) for a in step.arguments
    ]
    if step.name in epilogue.CASTS:
        return arguments[0]
    if step.name in epilogue.FUNCTIONS:
        return gpu_functions.expression(step.name, arguments[0], double=False)
    if step.name == "div":
        return gpu_functions.divide(*arguments, double=False)
    if step.name == "neg":
        # Triton's -x is 0 - x, of which -0 is none.
        return f"{arguments[0]} * -1.0"
    if step.name == "where":
        return f"tl.where({', '.join(arguments)})"
    return f"{arguments[0]} {_SYMBOLS[step.name]} {arguments[1]}"
