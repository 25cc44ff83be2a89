"""Products of matrices followed by pointwise operations, which finish an element where it is summed.

Ops
    bi_compile::linear_epilogue(Tensor x, Tensor w, Tensor? bias, Tensor? other, str program) -> Tensor
        `linear`, then the program
    bi_compile::product_epilogue(Tensor a, Tensor b, Tensor? c, Tensor? other, str program, *,
                                 Scalar beta=1, Scalar alpha=1) -> Tensor
        `mm` or `bmm`, without a c, else `addmm` or `baddbmm`, by the rank of a; then the program
    bi_compile::grouped_mm_epilogue(Tensor a, Tensor b, Tensor? offs, Tensor? other, str program) -> Tensor
        `grouped_mm`, then the program, on the zeros of rows and columns behind the last group, too

A program is a line of steps such as "t1 = float32(p); t2 = neg(t1); t3 = exp(t2)", the last of which is the
result. Arguments are p, the product rounded to its dtype; o, the element at the same place of `other`, which
has the result's shape and the product's dtype; earlier steps; and numbers, which take the dtype of the other
arguments. Every step rounds to that dtype, as the op of its name does when run alone. STEPS lists the names.

A program that reads q cuts the product's last dim, an even number of columns, in two: p is an element of the
left half, q the one at the same place of the right half, as in "silu(gate) * up" with one weight for both.

The bits are those of the ops run one by one, which on the CPU they are. Raises UnsupportedDtypeError as `mm`
does, ValueError for what is no program.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bi_compile.templates.contraction import contract, grouped
from bi_compile.templates.pointwise.contract import unary
from bi_compile.templates.pointwise.functions import expressions
from bi_compile.templates.registry import define

Tensor = torch.Tensor
Value = str | float

CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}
COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "le": torch.le,
    "lt": torch.lt,
    "ge": torch.ge,
    "gt": torch.gt,
}
FUNCTIONS = frozenset(name for name, (arguments, _) in expressions().items() if arguments == 1)
STEPS: dict[str, int] = {
    **dict.fromkeys((*CASTS, *FUNCTIONS, "neg"), 1),
    **dict.fromkeys((*ARITHMETIC, *COMPARISONS), 2),
    "where": 3,
}
"""Name of a step -> how many arguments it takes."""

MOST_STEPS = 64
_FEW_STEPS = 8
_STEP = re.compile(r"t(\d+) = (\w+)\(([^()]*)\)")


class Step(NamedTuple):
    """The value t<n> of the n-th step: a name of STEPS and arguments "p", "q", "o", "t<n>" or numbers."""

    name: str
    arguments: tuple[Value, ...]


def spell(steps: list[Step]) -> str:
    """The program of these steps."""
    return "; ".join(
        f"t{i} = {step.name}({', '.join(map(str, step.arguments))})" for i, step in enumerate(steps, 1)
    )


@functools.lru_cache(maxsize=4096)
def parse(program: str) -> tuple[Step, ...]:
    """The steps of a program. Raises ValueError."""
    steps: list[Step] = []
    for text in program.split("; "):
        found = _STEP.fullmatch(text)
        values = {"p", "q", "o", *(f"t{i}" for i in range(1, len(steps) + 1))}
        number = len(steps) + 1
        arguments = tuple(_argument(a, values) for a in found[3].split(", ")) if found else ()
        if found is None or int(found[1]) != number or STEPS.get(found[2]) != len(arguments):
            raise ValueError(f"{text!r} is no step {number} of an epilogue")
        if number > MOST_STEPS:
            raise ValueError(f"an epilogue has at most {MOST_STEPS} steps")
        steps.append(Step(found[2], arguments))
    return tuple(steps)


def _argument(text: str, values: set[str]) -> Value:
    return text if text in values else float(text)


def is_heavy(program: str) -> bool:
    """Whether it is more than a few instructions."""
    steps = parse(program)
    return len(steps) > _FEW_STEPS or any(step.name in FUNCTIONS or step.name == "div" for step in steps)


@functools.lru_cache(maxsize=4096)
def reads_other(program: str) -> bool:
    return any("o" in step.arguments for step in parse(program))


@functools.lru_cache(maxsize=4096)
def cuts(program: str) -> bool:
    """Whether it takes both halves of a product."""
    return any("q" in step.arguments for step in parse(program))


def dtypes(program: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of every value, given that of the product. Raises ValueError where a step mixes several."""
    found = {"p": dtype, "q": dtype, "o": dtype}
    for i, step in enumerate(parse(program), 1):
        own = {found[a] for a in step.arguments[step.name == "where" :] if isinstance(a, str)}
        condition = step.arguments[0] if step.name == "where" else None
        if len(own) != 1 or (condition is not None and found.get(str(condition)) != torch.bool):
            raise ValueError(f"step {i} of an epilogue, {step.name}, has arguments of dtypes {own}")
        result = CASTS.get(step.name, torch.bool if step.name in COMPARISONS else own.pop())
        found[f"t{i}"] = result
    return found


@functools.lru_cache(maxsize=4096)
def result_dtype(program: str, dtype: torch.dtype) -> torch.dtype:
    return dtypes(program, dtype)[f"t{len(parse(program))}"]


def run(program: str, product: Tensor, other: Tensor | None) -> Tensor:
    """The program on a product, op by op."""
    left, right = product.chunk(2, -1) if cuts(program) else (product, None)
    values: dict[str, Any] = {"p": left, "q": right, "o": other}

    def of(argument: Value, like: Tensor) -> Tensor:
        if isinstance(argument, str):
            return values[argument]
        # A tensor: by a number, a quotient on a CUDA device is a product with its reciprocal.
        return torch.full((), argument, dtype=like.dtype, device=like.device)

    for i, (name, arguments) in enumerate(parse(program), 1):
        like = next(values[a] for a in arguments[name == "where" :] if isinstance(a, str))
        x, *more = (of(a, like) for a in arguments)
        if name in CASTS:
            value = x.to(CASTS[name])
        elif name in FUNCTIONS:
            value = unary(x, name)
        elif name == "neg":
            value = x.neg()
        elif name == "where":
            value = torch.where(x, *more)
        else:
            value = (ARITHMETIC | COMPARISONS)[name](x, *more)
        values[f"t{i}"] = value
    return value


def product_of(a: Tensor, b: Tensor, c: Tensor | None, beta: Any, alpha: Any) -> Tensor:
    """The product alone."""
    ops = torch.ops.bi_compile
    if c is None:
        return ops.mm(a, b) if a.dim() == 2 else ops.bmm(a, b)
    added = ops.addmm if a.dim() == 2 else ops.baddbmm
    return added(c, a, b, beta=beta, alpha=alpha)


def shape_of(program: str, product: torch.Size) -> torch.Size:
    """Of what becomes of a product of a shape."""
    *leading, columns = product
    return torch.Size((*leading, columns // 2)) if cuts(program) else product


def _finished(program: str, product: Tensor, other: Tensor | None) -> Tensor:
    """An empty result, and the checks."""
    shape = shape_of(program, product.shape)
    torch._check(
        not cuts(program) or product.shape[-1] % 2 == 0,
        lambda: f"expected an even number of columns to cut in two, got {list(product.shape)}",
    )
    torch._check(
        (other is None) != reads_other(program),
        lambda: f"an epilogue {program!r} was given {'no' if other is None else 'an'} other tensor",
    )
    if other is not None:
        torch._check(
            other.dtype == product.dtype and other.dim() == product.dim(),
            lambda: f"expected other like the product, got {other.dtype} {list(other.shape)}",
        )
        for found, expected in zip(other.shape, shape, strict=True):
            torch._check(found == expected, lambda: "other has another shape than the result")
    return product.new_empty(shape, dtype=result_dtype(program, product.dtype))


def _fake_linear(x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None, program: str) -> Tensor:
    return _finished(program, contract._fake_linear(x, w, bias), other)


def _fake_product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    other: Tensor | None,
    program: str,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    return _finished(program, contract._fake_product("product_epilogue", a.dim(), a, b, c), other)


def _fake_grouped(a: Tensor, b: Tensor, offs: Tensor | None, other: Tensor | None, program: str) -> Tensor:
    return _finished(program, grouped._fake(a, b, offs), other)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None, program: str) -> Tensor:
    return run(program, torch.ops.bi_compile.linear(x, w, bias), other).contiguous()


def _product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    other: Tensor | None,
    program: str,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    return run(program, product_of(a, b, c, beta, alpha), other).contiguous()


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None, other: Tensor | None, program: str) -> Tensor:
    return run(program, torch.ops.bi_compile.grouped_mm(a, b, offs), other).contiguous()


linear_epilogue = define(
    "linear_epilogue(Tensor x, Tensor w, Tensor? bias, Tensor? other, str program) -> Tensor",
    family="contraction",
    fake=_fake_linear,
    on_cpu=_linear,
)
product_epilogue = define(
    "product_epilogue(Tensor a, Tensor b, Tensor? c, Tensor? other, str program, *, Scalar beta=1, "
    "Scalar alpha=1) -> Tensor",
    family="contraction",
    fake=_fake_product,
    on_cpu=_product,
)
grouped_mm_epilogue = define(
    "grouped_mm_epilogue(Tensor a, Tensor b, Tensor? offs, Tensor? other, str program) -> Tensor",
    family="contraction",
    fake=_fake_grouped,
    on_cpu=_grouped,
)
