"""How a template's op comes to be: its schema, its fake implementation and its kernels on first use.

Every op lives in the namespace `bi_compile`. The kernel of a device is registered under that device's own
dispatch key when it is first needed: until then the op's default implementation below loads the family and
calls the op again. A CPU-only install therefore never imports Triton, and an install without a C++ compiler
fails at the first call with one clear line.

On the CPU a family is one C++ library, `templates/<family>/cpu.cpp`. On CUDA devices it is one module,
`templates/<family>/gpu.py`, whose functions carry the decorator `implements`.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from bi_compile.errors import TritonNotFoundError, UnsupportedDeviceError

_library = torch.library.Library("bi_compile", "DEF")
_families: dict[str, str] = {}
_loaded: set[tuple[str, str]] = set()
_on_cuda: set[str] = set()


def define(
    schema: str, *, family: str, fake: Callable[..., Any], on_cpu: Callable[..., Any] | None = None
) -> torch._ops.OpOverload:
    """Define `bi_compile::<schema>` and return its overload.

    family: folder below `bi_compile/templates/` whose kernels implement the op.
    fake: the same signature on fake tensors: checks shapes and dtypes (raising what a user should read)
        and returns empty outputs, always contiguous.
    on_cpu: how the op is made of others there, if the family's C++ library does not have it.
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
        if device != "cpu" and name not in _on_cuda:
            raise UnsupportedDeviceError(device, name)
        return op(*args, **kwargs)

    _library.impl(name, load_and_call, "CompositeExplicitAutograd")
    if on_cpu is not None:
        _library.impl(name, on_cpu, "CPU")
    return op


def load(family: str, device: str = "cpu") -> None:
    """Make the kernels of `family` for `device` available, compiling them when no cached build fits.

    Raises UnsupportedDeviceError for a device without kernels, TritonNotFoundError when Triton is missing for
    those of a CUDA device, and CompilerNotFoundError or KernelBuildError when those in C++ cannot be built.
    """
    if (family, device) in _loaded:
        return
    if device == "cpu":
        from bi_compile.templates.cpu.build import build_and_load

        build_and_load(family)
    elif device == "cuda" and has_kernels(family, device):
        try:
            importlib.import_module(_gpu_module(family))
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise TritonNotFoundError(family) from None
    else:
        raise UnsupportedDeviceError(device, family)
    _loaded.add((family, device))


def has_kernels(family: str, device: str) -> bool:
    """Whether this version has any kernels of `family` for `device`; nothing is loaded."""
    if device != "cuda":
        return device == "cpu"
    return importlib.util.find_spec(_gpu_module(family)) is not None


def implements(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator for the CUDA implementation of `bi_compile::<name>`; returns the function as it was.

    The function is called with all tensors on one CUDA device, which is the current one.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def on_one_device(*args: Any, **kwargs: Any) -> Any:
            device = _only_device(name, args)
            if device.index == torch.cuda.current_device():
                return function(*args, **kwargs)
            with torch.cuda.device(device):
                return function(*args, **kwargs)

        _library.impl(name, on_one_device, "CUDA")
        _on_cuda.add(name)
        return function

    return register


def ops() -> dict[str, str]:
    """Op name -> family, for every op defined so far."""
    return dict(_families)


def _gpu_module(family: str) -> str:
    return f"bi_compile.templates.{family}.gpu"


def _only_device(name: str, args: tuple[Any, ...]) -> torch.device:
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    device = next(tensor.device for tensor in tensors if tensor.is_cuda)
    for tensor in tensors:
        if tensor.device != device:
            raise RuntimeError(f"{name}: expected all tensors on {device}, got one on {tensor.device}")
    return device


def _device_of(args: tuple[Any, ...]) -> str:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg.device.type
    return "cpu"
