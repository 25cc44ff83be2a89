"""Distances between all pairs of rows: see `contract`."""

from bi_compile.templates.distance.contract import cdist

__all__ = ["cdist"]
