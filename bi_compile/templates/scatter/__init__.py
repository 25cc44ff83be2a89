"""Reductions into slots chosen by an index, each slot one chain in index order: see `contract`."""

from bi_compile.templates.scatter.contract import index_put_add, scatter_reduce

__all__ = ["index_put_add", "scatter_reduce"]
