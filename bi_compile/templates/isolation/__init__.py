"""Ops without a template, run sample by sample."""

from bi_compile.templates.isolation import contract

__all__ = ["contract"]
