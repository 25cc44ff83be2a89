"""Products of matrices with one order of summation."""

from bi_compile.templates.contraction.contract import addmm, baddbmm, bf16_order, bmm, linear, mm

__all__ = ["addmm", "baddbmm", "bf16_order", "bmm", "linear", "mm"]
