"""The largest and smallest elements of a row, ties in index order: see `contract`."""

from bi_compile.templates.order_statistics.contract import topk

__all__ = ["topk"]
