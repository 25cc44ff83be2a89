"""Kernels that come one after the other: the next is brought onto the device while this one still runs.

CUDA calls it programmatic dependent launch; it saves most of the half microsecond between two kernels. A
kernel that takes part has a constant OVERLAP and calls `follow` first. There it waits until all kernels
before it have ended and what they wrote can be read, so nothing else of the order on a stream changes. Only
then it lets the next one come: no more than one waits, and takes no room from those that work. CUDA graphs
can hold such launches from driver 12.3 on: below it no kernel overlaps, captured or not.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bi_compile.templates.gpu.device import driver_version, processor

_LEAST_CAPABILITY = 90
_LEAST_DRIVER = (12, 3)


@triton.jit
def follow(OVERLAP: tl.constexpr):
    """To be called before anything is read or written, by every program."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


def overlapping(kernel: Any, device: torch.device) -> dict[str, Any]:
    """The arguments of a launch that say whether `kernel` takes part; none for one that never does."""
    if "OVERLAP" not in getattr(kernel, "arg_names", ()):
        return {}
    return {"OVERLAP": True, "launch_pdl": True} if able(device) else {"OVERLAP": False}


def able(device: torch.device) -> bool:
    """Whether kernels on a device can overlap; never where Triton interprets."""
    if device.type != "cuda":
        return False
    return processor(device.index).capability >= _LEAST_CAPABILITY and driver_version() >= _LEAST_DRIVER
