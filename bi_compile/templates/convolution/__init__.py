"""Convolutions with one order of summation: see `contract`."""

from bi_compile.templates.convolution.contract import convolution

__all__ = ["convolution"]
