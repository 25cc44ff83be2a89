"""`torch.compile(model, backend="batch_invariant")` gives every sample the same bits in any batch.

The public names are resolved on first use, so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "allow": "bi_compile.allowed",
    "batch_invariant": "bi_compile.backend",
    "eager": "bi_compile.eager_mode",
    "explain": "bi_compile.report.explain",
    "mark_batch": "bi_compile.batch",
    "BatchInvariantError": "bi_compile.errors",
    "Options": "bi_compile.options",
}

__all__ = [
    "BatchInvariantError",
    "Options",
    "__version__",
    "allow",
    "batch_invariant",
    "eager",
    "explain",
    "mark_batch",
]

if TYPE_CHECKING:
    from bi_compile.allowed import allow
    from bi_compile.backend import batch_invariant
    from bi_compile.batch import mark_batch
    from bi_compile.eager_mode import eager
    from bi_compile.errors import BatchInvariantError
    from bi_compile.options import Options
    from bi_compile.report.explain import explain


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bi_compile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
