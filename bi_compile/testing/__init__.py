"""The testing kit: does a sample get the same bits alone and in any batch?

    from bi_compile.testing import assert_batch_invariant

    def test_my_model():
        assert_batch_invariant(torch.compile(model, backend="batch_invariant"), inputs, control=model)

Works on any callable: eager modules, any `torch.compile` backend, ours. Names are resolved on first use, so
that pytest can load the plugin beside this file without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "assert_batch_invariant": "bi_compile.testing.invariance",
    "bisect": "bi_compile.testing.bisection",
    "FirstDifference": "bi_compile.testing.bisection",
    "InvarianceReport": "bi_compile.testing.invariance",
    "BatchVarianceError": "bi_compile.testing.messages",
    "VacuousCheckError": "bi_compile.testing.messages",
    "InaccurateResultError": "bi_compile.testing.messages",
    "ConformanceError": "bi_compile.testing.conforming",
    "Pad": "bi_compile.testing.padding",
    "check_decoder": "bi_compile.testing.decoders",
    "check_model": "bi_compile.testing.checking",
    "conformance": "bi_compile.testing.conforming",
}

__all__ = [
    "BatchVarianceError",
    "ConformanceError",
    "FirstDifference",
    "InaccurateResultError",
    "InvarianceReport",
    "Pad",
    "VacuousCheckError",
    "assert_batch_invariant",
    "bisect",
    "check_decoder",
    "check_model",
    "conformance",
]

if TYPE_CHECKING:
    from bi_compile.testing.bisection import FirstDifference, bisect
    from bi_compile.testing.checking import check_model
    from bi_compile.testing.conforming import ConformanceError, conformance
    from bi_compile.testing.decoders import check_decoder
    from bi_compile.testing.invariance import InvarianceReport, assert_batch_invariant
    from bi_compile.testing.messages import BatchVarianceError, InaccurateResultError, VacuousCheckError
    from bi_compile.testing.padding import Pad


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'bi_compile.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
