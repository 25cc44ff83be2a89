"""Kernels that come one after the other: the next is brought onto the device while this one still runs.

CUDA calls it programmatic dependent launch; it saves most of the half microsecond between two kernels. A
kernel that takes part has a constant OVERLAP and calls `follow` first. There it waits until all kernels
before it have ended and what they wrote can be read, so nothing else of the order on a stream changes. Only
then it lets the next one come: no more than one waits, and takes no room from those that work.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bi_compile.templates.gpu.device import processor

_LEAST_CAPABILITY = 90


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
    able = capability(device) >= _LEAST_CAPABILITY
    return {"OVERLAP": True, "launch_pdl": True} if able else {"OVERLAP": False}


def capability(device: torch.device) -> int:
    """0 where Triton interprets."""
    return processor(device.index).capability if device.type == "cuda" else 0
