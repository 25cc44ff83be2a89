"""How a template's op comes to be: its schema, its fake implementation and its kernels on first use.

Every op lives in the namespace `bi_compile`. The kernel of a device is registered under that device's own
dispatch key when it is first needed: until then the op's default implementation below loads the family and
calls the op again. A CPU-only install therefore never imports Triton, and an install without a C++ compiler
fails at the first call with one clear line.
"""

from collections.abc import Callable
from typing import Any

import torch

from bi_compile.errors import UnsupportedDeviceError

_library = torch.library.Library("bi_compile", "DEF")
_families: dict[str, str] = {}
_loaded: set[tuple[str, str]] = set()


def define(schema: str, *, family: str, fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Define `bi_compile::<schema>` and return its overload.

    family: folder below `bi_compile/templates/` whose kernels implement the op.
    fake: the same signature on fake tensors: checks shapes and dtypes (raising what a user should read)
        and returns empty outputs, always contiguous.
    """
    name = schema.split("(", 1)[0]
    # Our kernels read any strides and their bits do not depend on them: Inductor may choose the layout.
    _library.define(schema, tags=(torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag))
    _families[name] = family
    op = getattr(torch.ops.bi_compile, name).default
    torch.library.register_fake(f"bi_compile::{name}", fake, lib=_library)

    def load_and_call(*args: Any, **kwargs: Any) -> Any:
        device = _device_of(args)
        load(family, device)
        return op(*args, **kwargs)

    _library.impl(name, load_and_call, "CompositeExplicitAutograd")
    return op


def load(family: str, device: str = "cpu") -> None:
    """Make the kernels of `family` for `device` available, compiling them when no cached build fits.

    Raises UnsupportedDeviceError for a device without kernels and CompilerNotFoundError or KernelBuildError
    when the C++ kernels cannot be built.
    """
    if (family, device) in _loaded:
        return
    if device != "cpu":
        raise UnsupportedDeviceError(device, family)
    from bi_compile.templates.cpu.build import build_and_load

    build_and_load(family)
    _loaded.add((family, device))


def ops() -> dict[str, str]:
    """Op name -> family, for every op defined so far."""
    return dict(_families)


def _device_of(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device.type
    return "cpu"
