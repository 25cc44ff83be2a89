"""Kernels compiled for GPUs on a machine without one: what would be launched is compiled and kept.

Runs in a process of its own (see `run_compiled`), since the interpreter of other tests replaces every kernel.
"""

import contextlib
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

BUILDS: list[dict] = []

LIMITS = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
"""Bytes of shared memory that one block may use, by capability."""


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
                "metadata": kernel.metadata,
                "given": kwargs,
                **resources(kernel.asm["cubin"]),
                "shared": kernel.metadata.shared,
            }
        )
        return kernel

    JITFunction.run = run


def check(build: dict, stack: int = 0) -> str:
    """The steps of one of BUILDS, which has to fit on its device, and spill no more than `stack` bytes."""
    from bi_compile.templates.gpu.steps import certified

    told = {key: value for key, value in build.items() if key not in ("asm", "metadata", "given")}
    assert build["shared"] <= LIMITS[build["capability"]], told
    assert build["stack"] + build["local"] <= stack, told
    return str(certified(SimpleNamespace(**build)))


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
    """The output of `program`, run with this module as `compiled`, in a process without the interpreter.

    That process is forked off one that has imported what takes long.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.interpreted.preloaded"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(program, sender))
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    try:
        child.start()
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
    sender.close()
    try:
        output, failure = receiver.recv()
    except EOFError:
        output, failure = "", "the process died: see stderr"
    child.join()
    assert failure is None, failure
    return output


def _run(program: str, sender: Connection) -> None:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(program, {"__name__": "program", "compiled": sys.modules[__name__]})
        sender.send((output.getvalue(), None))
    except BaseException:
        sender.send(("", traceback.format_exc()))
