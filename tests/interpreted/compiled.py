"""Kernels compiled for GPUs on a machine without one: what would be launched is compiled and kept.

Runs in a process of its own (see `run_compiled`), since the interpreter of other tests replaces every kernel.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

BUILDS: list[dict] = []


class _Driver:
    """Enough of a driver for Triton to compile, and nothing to launch with."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend_driver(capability: int) -> None:
    """From now on Triton believes in a device of this capability."""
    from triton.runtime import driver

    driver.set_active(_Driver(capability))


def compile_launches(capability: int) -> None:
    """From now on every launch compiles for `capability` and appends its resources to BUILDS."""
    from triton.runtime import JITFunction

    pretend_driver(capability)
    stock = getattr(JITFunction, "_stock_run", JITFunction.run)
    JITFunction._stock_run = stock

    def run(self, *args, grid, warmup, **kwargs):
        kernel = stock(self, *args, grid=grid, warmup=True, **kwargs)
        BUILDS.append(
            {
                "name": self.fn.__name__,
                "capability": capability,
                "asm": kernel.asm,
                **resources(kernel.asm["cubin"]),
            }
        )
        return kernel

    JITFunction.run = run


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes of its stack and local memory: what was spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", told.stdout + told.stderr)
    assert found, told
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": int(found[3]),
        "local": int(found[4]),
    }


def run_compiled(program: str) -> str:
    """The output of `program`, run with this module imported as `compiled`, without the interpreter."""
    import os

    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", "from tests.interpreted import compiled\n" + program],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return told.stdout
