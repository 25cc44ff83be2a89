"""Additions into rows chosen by an index, in one order."""

from bi_compile.templates.scatter.contract import embedding_grad

__all__ = ["embedding_grad"]
