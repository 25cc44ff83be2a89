"""Inductor's Triton code between our ops, generated without a GPU: operations round as in eager."""

from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_PROGRAM = """
import torch
from tests.interpreted.pretended import generated

def function(x, w):
    y = torch.nn.functional.gelu(x) / 3.0 + x / w
    y = torch.nn.functional.layer_norm(y, (64,), w, w).softmax(-1).sum(-1, keepdim=True)
    return torch.nn.functional.silu(x) * y, torch.rsqrt(x * x + 1), x.tanh()

print(generated(function, (8, 64), (64,), dtype=torch.{dtype}, ours={ours}))
"""


def lines(ours: bool, dtype: str = "bfloat16") -> list[str]:
    code = run_compiled(_PROGRAM.format(ours=ours, dtype=dtype))
    return [line.strip() for line in code.splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_our_code(dtype):
    code = lines(True, dtype)
    arithmetic = [line for line in code if line.startswith("tmp")]
    assert any("triton.language.div_rn(" in line for line in arithmetic)
    assert not any(" / " in line for line in arithmetic), "an approximate quotient"
    assert not any("0.33333333" in line for line in arithmetic), "the reciprocal of a known divisor"
    assert not any("tl.sum(" in line or "tl.reduce(" in line for line in code), (
        "a sum in an order of Inductor's"
    )
    assert any("libdevice.erf(" in line for line in arithmetic)
    assert any("tl.sqrt_rn(" in line for line in arithmetic)
    assert all("'enable_fp_fusion': False" in line for line in code if "'enable_fp_fusion'" in line)
    assert any("'enable_fp_fusion'" in line for line in code)
    for op in ("layer_norm", "softmax", "sum"):
        assert any(f"torch.ops.bi_compile.{op}.default(" in line for line in code)


_PERCEPTRON = """
import torch
from tests.interpreted.pretended import generated
from torch.nn.functional import gelu, layer_norm, linear, silu

def function(x, up, gate, down):
    x = x + linear(gelu(linear(x, up)), down)
    y = layer_norm(x + linear(silu(linear(x, gate)) * linear(x, up), down), (64,))
    return linear(y, up) * 2.0, y

print(generated(function, (2, 8, 64), (96, 64), (96, 64), (64, 96), dtype=torch.bfloat16))
"""


def test_what_follows_on_products_is_no_kernel_of_its_own():
    code = run_compiled(_PERCEPTRON)
    assert code.count("torch.ops.bi_compile.product_epilogue.default(") == 4
    assert code.count("torch.ops.bi_compile.mm.default(") == 2
    assert code.count("torch.ops.bi_compile.added_layer_norm.default(") == 1
    assert code.count("@triton.jit") == 0, code


_NEGATIVE = """
import torch
from tests.interpreted.pretended import generated
print(generated(lambda x, n: (-x, 1.5 - x, -n), (8,), (8,), dtype=torch.{dtype}, ours={ours}))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_zero_is_negated(dtype):
    """Triton's -x is 0 - x, which is +0 for x = +0."""

    def code(ours: bool) -> list[str]:
        lines = run_compiled(_NEGATIVE.format(dtype=dtype, ours=ours)).splitlines()
        return [line.strip() for line in lines if line.strip().startswith("tmp")]

    assert not any(" = -" in line for line in code(True))
    assert any("* -1.0" in line for line in code(True))
    assert any(" = -" in line for line in code(False))


def test_a_negative_zero_is_no_positive_one():
    """Triton takes the number -0.0 for 0.0."""
    code = run_compiled(_NEGATIVE.format(dtype="float32", ours=True).replace("(-x, 1.5 - x, -n)", "-0.0 - x"))
    assert "tl.full([1], 0.0, tl.float32) * -1.0" in code, code


def test_integers_are_negated():
    program = _NEGATIVE.format(dtype="int32", ours=True).replace("(-x, 1.5 - x, -n)", "-n")
    assert " = -tmp" in run_compiled(program)


def test_stock_code_differs():
    """The control."""
    code = lines(False)
    assert any(" / " in line or "tl.sum(" in line for line in code if line.startswith("tmp"))
    assert any("0.33333333" in line for line in code)
    assert any("'enable_fp_fusion': True" in line for line in code)


def test_16_bit_intermediates_are_rounded():
    code = lines(True)
    quotients = [line.split(" = ")[0] for line in code if "div_rn" in line]
    assert quotients
    for name in quotients:
        assert any(f"{name}.to(tl.bfloat16)" in line for line in code) or any(
            "tl.store" in line and f"{name}," in line for line in code
        ), name
