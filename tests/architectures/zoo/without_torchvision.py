"""timm without torchvision, which it imports and of which its models here use nothing."""

import importlib.machinery
import sys
import types
from typing import Any

_USED = ("datasets", "models.feature_extraction", "ops.misc", "transforms.functional", "utils")
_MODES = {name: name.lower() for name in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), _MODES)


def timm() -> types.ModuleType:
    """The package, imported with stand-ins where torchvision would be."""
    if "timm" not in sys.modules and importlib.machinery.PathFinder.find_spec("torchvision") is None:
        names = {part for name in _USED for part in _prefixes(f"torchvision.{name}")}
        for name in sorted(names):
            stub = _Stub(name)
            stub.__path__ = []
            sys.modules[name] = stub
            if "." in name:
                parent, child = name.rsplit(".", 1)
                setattr(sys.modules[parent], child, stub)
        try:
            import timm
        finally:
            # Other packages ask whether torchvision is there, and must hear that it is not.
            for name in names:
                del sys.modules[name]
        return timm
    import timm

    return timm


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
