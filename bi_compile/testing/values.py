"""Values on which a change of the order of evaluation shows: kinds by name, drawn with a seed."""

import inspect
from collections.abc import Callable

import torch

EXPONENTS = {torch.float16: 5, torch.bfloat16: 30, torch.float32: 30, torch.float64: 300}
"""The dtypes, and the exponents by which "wide" values spread either way: their squares stay finite."""


def values(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of `shape` and `dtype` whose values follow from the kind and the seed.

    kind: "normal" is the standard normal distribution. "cancelling" holds pairs +b, -b of large values along
        the last dimension among small ones: any other order of a sum shows. "wide" spreads the exponents as
        far as squares of the dtype allow. "subnormal" mixes subnormals and the least normal numbers.
    dtype: fp16, bf16, fp32 or fp64.
    """
    generator = torch.Generator().manual_seed(seed)
    return KINDS[kind](torch.empty(shape, dtype=torch.float64), dtype, generator).to(dtype)


def code_of(kind: str) -> str:
    """Code of a function `draw(x, dtype, generator)` that is that kind, for a program without bi_compile."""
    fn = KINDS[kind]
    code = inspect.getsource(fn).replace(f"def {fn.__name__}(", "def draw(", 1)
    return (f"EXPONENTS = {EXPONENTS}\n\n\n" if "EXPONENTS" in code else "") + code


def _normal(x: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return x.normal_(generator=generator)


def _cancelling(x: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    x = x.normal_(generator=generator) * 2.0**-8
    pairs = x.shape[-1] // 3
    places = torch.rand(x.shape, generator=generator).argsort(-1)
    large = 1024 * (1 + torch.rand(*x.shape[:-1], pairs, generator=generator, dtype=torch.float64))
    x.scatter_(-1, places[..., :pairs], large)
    return x.scatter_(-1, places[..., pairs : 2 * pairs], -large)


def _wide(x: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    span = EXPONENTS[dtype]
    exponents = torch.randint(-span, span + 1, x.shape, generator=generator)
    return torch.ldexp(x.normal_(generator=generator), exponents)


def _subnormal(x: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    info = torch.finfo(dtype)
    steps = torch.randint(1, int(2 / info.eps), x.shape, generator=generator).double()
    sign = torch.where(torch.rand(x.shape, generator=generator) < 0.5, -1.0, 1.0)
    return steps * sign * (info.tiny * info.eps)


KINDS: dict[str, Callable[[torch.Tensor, torch.dtype, torch.Generator], torch.Tensor]] = {
    "normal": _normal,
    "cancelling": _cancelling,
    "wide": _wide,
    "subnormal": _subnormal,
}
