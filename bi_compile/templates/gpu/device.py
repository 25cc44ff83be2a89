"""The device a kernel runs on, and how every kernel is compiled."""

import ctypes
import functools
import sys
from typing import NamedTuple

import torch

COMPILATION = {"enable_fp_fusion": False}
"""Options of every launch: a product and a sum in the source stay two roundings in the machine code."""

ALL_REGISTERS = {"maxnreg": 255}
"""An option for up to 8 warps: else the compiler may spill to fit another block onto a multiprocessor."""


class Processor(NamedTuple):
    """What the choice of a configuration may look at: the device alone, never the batch."""

    capability: int
    """Compute capability as one number: 80, 86, 89, 90, 100."""
    multiprocessors: int
    shared_memory: int
    """Bytes that one block may use."""


@functools.cache
def processor(index: int) -> Processor:
    """The CUDA device `cuda:<index>`."""
    found = torch.cuda.get_device_properties(index)
    return Processor(
        10 * found.major + found.minor, found.multi_processor_count, found.shared_memory_per_block_optin
    )


@functools.cache
def driver_version() -> tuple[int, int]:
    """The newest CUDA that the driver of this machine knows: (12, 3); (0, 0) where no driver can be asked."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0, 0
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return 0, 0
    return version.value // 1000, version.value % 1000 // 10
