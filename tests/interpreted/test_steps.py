"""The steps of a compiled kernel: a sum whose order is open is told from one that is not."""

import json
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_PROGRAM = "import json; from tests.interpreted.steps_compiled import *\nprint(json.dumps(found({})))"


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_what_is_open_is_told(capability):
    found = json.loads(run_compiled(_PROGRAM.format(capability)))
    whole = {"tree", "tree of 8 warps", "largest", "running maximum", "sum that is a flag"}
    assert {name for name, (_, certain) in found.items() if certain} == whole
    assert {found[name][0] for name in whole} == {"sums of 2 by scalar instructions"}
    told = {name: order for name, (order, certain) in found.items() if not certain}
    for name in ("sum", "sum of 8 warps", "sum that chooses"):
        assert told[name].startswith("in no order of their own: addf of 2048 in #ttg.blocked<"), name
    assert told["sum"] != told["sum of 8 warps"]
    assert told["running sum"] == "in no order of their own: scan by scalar instructions"
    assert told["atomic sum"] == "in no order of their own: atomic_rmw by scalar instructions"
    assert told["fused"] == "sums of 2; products may be fused into sums by scalar instructions"


_BOTH_WAYS = """
import os, tempfile, warnings
from triton.compiler import code_generator
from triton.language import core
from triton.runtime.jit import JITCallable
from bi_compile.templates.contraction.gpu_configs import Config
from tests.interpreted import contraction_compiled as c, preloaded, shortcuts

def texts():
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        what = (Config(64, 64, 64, 4, 3), c.torch.bfloat16, 90, "M", True)
        built = c.gpu_certificates.compile_grouped(*what, c.epilogues(c.torch.bfloat16)["gated"])
        return built.asm["ttir"], built.asm["ptx"]

quick = [texts(), texts()]
JITCallable.parse, code_generator.warnings = preloaded._parse, warnings
core.block_type.__init__, core.tensor.__init__ = shortcuts._stock_block, shortcuts._stock_tensor
core.dtype.__eq__, core._unwrap_if_constexpr = shortcuts._stock_equal, shortcuts._stock_unwrapped
print(len(quick[0][1]), quick == [texts()] * 2)
"""


def test_what_saves_time_changes_no_kernel():
    """Neither the first one that is compiled nor those after it; see `preloaded`."""
    length, same = run_compiled(_BOTH_WAYS).split()
    assert int(length) > 1000
    assert same == "True"
