"""What takes long and is the same for every program of `compiled.run_compiled`: imported before the fork."""

import importlib

from triton.runtime.cache import triton_key

for _name in (
    "torch._subclasses",
    "triton.compiler.code_generator",
    "tests.interpreted.contraction_compiled",
    "tests.interpreted.pretended",
    *(
        f"bi_compile.templates.{family}.gpu"
        for family in ("attention", "convolution", "distance", "normalization", "scan", "scatter", "softmax")
    ),
):
    importlib.import_module(_name)
# A digest of all of Triton, kept by the process that asks for it first.
triton_key()
