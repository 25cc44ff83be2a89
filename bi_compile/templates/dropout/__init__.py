"""Which elements dropout keeps, a sample at a time, from the sample's own bits: see `contract`."""

from bi_compile.templates.dropout.contract import dropout_mask

__all__ = ["dropout_mask"]
