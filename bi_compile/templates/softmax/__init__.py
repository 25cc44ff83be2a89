"""softmax and log_softmax with sums by the row tree: see `contract`."""

from bi_compile.templates.softmax.contract import log_softmax, softmax

__all__ = ["log_softmax", "softmax"]
