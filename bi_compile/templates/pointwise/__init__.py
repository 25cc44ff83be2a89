"""Pointwise functions with one implementation for every element."""

from bi_compile.templates.pointwise.contract import binary, unary

__all__ = ["binary", "unary"]
