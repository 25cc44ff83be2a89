"""What takes long and is the same for every program of `compiled.run_compiled`: imported before the fork."""

import gc
import importlib
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

from triton.backends.nvidia.compiler import get_ptxas, get_ptxas_version
from triton.compiler import code_generator
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITCallable

for _name in (
    "torch._subclasses",
    "tests.interpreted.shortcuts",
    "tests.interpreted.contraction_compiled",
    "tests.interpreted.pretended",
    *(
        f"bi_compile.templates.{family}.gpu"
        for family in ("attention", "convolution", "distance", "normalization", "scan", "scatter", "softmax")
    ),
):
    importlib.import_module(_name)
# A digest of all of Triton and what its tools call themselves, kept by the process that asks first.
triton_key()
for _capability in (90, 100):
    get_ptxas_version(_capability)
    get_ptxas(_capability)


def _parsed(self):
    """Once a process, not once a call of the function in a kernel."""
    if "parsed" not in vars(self):
        self.parsed = _parse(self)
    return self.parsed


_parse, JITCallable.parse = JITCallable.parse, _parsed
# For old Pythons Triton sets filters of warnings at every node of a kernel's source.
_no_filters = {"catch_warnings": nullcontext, "simplefilter": lambda *given: None}
code_generator.warnings = SimpleNamespace(**vars(warnings) | _no_filters)
# None of this is ever garbage: no need to look for some in it each time that a kernel is compiled.
gc.freeze()
