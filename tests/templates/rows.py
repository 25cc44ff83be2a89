"""What the tests of the row reductions, softmax and norms share: data, layouts, neighbours, ISA variants."""

import hashlib
import os
import subprocess
import sys

import torch
from hypothesis import strategies as st

from bi_compile.templates.pointwise import contract as pointwise
from tests.bits import as_integers, order_sensitive

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NEIGHBOURS = (float("nan"), float("inf"), -float("inf"), 3e4, 0.0)
LENGTHS = st.one_of(st.integers(1, 70), st.sampled_from((127, 384, 1023, 1024, 1025, 2049, 3100)))


EXACT = ("sum", "mean", "prod", "amax", "amin", "argmax", "argmin")
"""Reductions whose op and oracle take a row and nothing else."""


def vector(name: str):
    """The at::vec function the kernels use, as a function of a tensor."""
    return lambda x: pointwise.unary(x, name)


def vector_pow(x: torch.Tensor, power: float) -> torch.Tensor:
    return pointwise.binary(x, torch.full_like(x, power), "pow")


def with_specials(x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Some elements replaced by zeros of both signs, subnormals, infinities and, rarely, NaN."""
    values = torch.tensor([0.0, -0.0, 2.0**-140, 3e4, float("inf"), -float("inf"), float("nan")])
    odds = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.04, 0.04, 0.02])
    pick = torch.multinomial(odds, x.numel(), replacement=True, generator=generator).view(x.shape)
    replace = torch.rand(x.shape, generator=generator) < 0.02
    return torch.where(replace, values.to(x.dtype)[pick], x)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "reversed dims": lambda x: (
        x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    ),
    "odd offset": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "every second": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "wider rows": lambda x: torch.nn.functional.pad(x, (2, 5), value=torch.nan)[..., 2:-5] if x.dim() else x,
}


def data(*shape: int, dtype: torch.dtype, seed: int = 0, specials: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = order_sensitive(*shape, dtype=dtype, generator=generator)
    return with_specials(x, generator) if specials else x


def sample(name: str, *shape: int, dtype: torch.dtype, seed: int = 0, specials: bool = False) -> torch.Tensor:
    """Data for a chain: products stay near 1, and of sums of exponentials every summand counts."""
    x = data(*shape, dtype=dtype, seed=seed, specials=specials)
    if name in ("cumprod", "prod"):
        return (1 + x.sign() * (x.abs() % 0.4)).to(dtype)
    return (x.double() / 256).to(dtype) if name == "logcumsumexp" else x


def scrambled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Order-sensitive data from integers alone, so that golden hashes do not hang on a random generator."""
    count = torch.Size(shape).numel()
    i = (torch.arange(count, dtype=torch.int64) * 2654435761 + 12345) % 2**32
    mantissa = (i % 4093).double() / 4093 - 0.5
    return (mantissa * 2.0 ** ((i // 4096) % 16 - 8).double()).view(shape).to(dtype)


def digest(*tensors: torch.Tensor) -> str:
    sha = hashlib.sha256()
    for x in tensors:
        sha.update(as_integers(x).numpy().tobytes())
    return sha.hexdigest()[:16]


def digest_under(isa: str, expression: str) -> str:
    """`expression`, evaluated to tensors in a process whose kernels are compiled for `isa`, hashed."""
    program = (
        "import torch; from tests.templates.rows import *; "
        "from bi_compile.templates import normalization, reduction, softmax; "
        f"print(digest(*{expression}))"
    )
    environment = {**os.environ, "BI_COMPILE_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()
