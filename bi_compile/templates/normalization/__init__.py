"""layer_norm and rms_norm with sums by the row tree: see `contract`."""

from bi_compile.templates.normalization.contract import layer_norm, rms_norm

__all__ = ["layer_norm", "rms_norm"]
