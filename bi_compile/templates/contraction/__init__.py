"""Products of matrices with one order of summation."""

from bi_compile.templates.contraction.contract import addmm, baddbmm, bf16_order, bmm, linear, mm
from bi_compile.templates.contraction.epilogue import grouped_mm_epilogue, linear_epilogue, product_epilogue
from bi_compile.templates.contraction.grouped import grouped_mm

__all__ = [
    "addmm",
    "baddbmm",
    "bf16_order",
    "bmm",
    "grouped_mm",
    "grouped_mm_epilogue",
    "linear",
    "linear_epilogue",
    "mm",
    "product_epilogue",
]
