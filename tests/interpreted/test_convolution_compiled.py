"""The shipped convolutions as compiled for GPUs: the order of products w x windows, and no spills."""

import json
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_TABLE = """
import json
import torch
from bi_compile.templates.convolution import gpu_certificates, gpu_tiles
from bi_compile.templates.gpu import ahead
from bi_compile.templates.gpu.device import Processor

capability, dtype, rows = {capability}, torch.{dtype}, []
for tile in gpu_tiles.shipped(Processor(capability, 132, {limit}), dtype):
    for chunked in {chunked}:
        compiled = gpu_certificates.compile_convolution(tile, dtype, capability, chunked)
        used = ahead.resources(compiled)
        try:
            order = str(gpu_certificates.order(tile, dtype, capability, chunked))
        except ValueError as error:
            order = str(error)
        rows.append([list(tile), chunked, order, used.spilled, used.shared_memory])
print(json.dumps(rows))
"""
CHAIN = "chain16[{}](0; w*x)"
SMALL = "dot8[32](sub(x, tf32(x))*tf32(w); dot8[32](sub(w, tf32(w))*tf32(x); 0))"
BLOCK = f"dot8[32](tf32(w)*tf32(x); 0 if NaN({SMALL}))"
ORDERS = {
    ("bfloat16", False): f"bf16(add({CHAIN.format('K')}, f32(bias))) by bf16 k16",
    ("bfloat16", True): f"bf16(add(f32(bias), sum[4096 of K](0; {CHAIN.format(4096)}))) by bf16 k16",
    ("float16", False): f"f16(add({CHAIN.format('K')}, f32(bias))) by f16 k16",
    ("float16", True): f"f16(add(f32(bias), sum[4096 of K](0; {CHAIN.format(4096)}))) by f16 k16",
    ("float32", True): f"add(bias, sum[512 of K](0; sum[32 of 512](0; {BLOCK}))) by tf32 k8",
}


@pytest.mark.parametrize(
    ("capability", "dtype", "chunked"),
    [
        (80, "bfloat16", [False]),
        (80, "float32", [True]),
        (86, "bfloat16", [True]),
        (86, "float16", [False]),
        (86, "float32", [True]),
        (89, "bfloat16", [False]),
        (89, "float16", [True]),
        (89, "float32", [True]),
        (90, "bfloat16", [False, True]),
        (90, "float16", [False]),
        (90, "float32", [True]),
        (100, "bfloat16", [False, True]),
        (100, "float16", [False]),
        (100, "float32", [True]),
    ],
)
def test_every_shipped_tile(capability, dtype, chunked):
    limit = 101376 if capability < 90 else 232448
    program = _TABLE.format(capability=capability, dtype=dtype, chunked=chunked, limit=limit)
    rows = json.loads(run_compiled(program))
    assert rows
    for tile, chunks, order, spilled, shared_memory in rows:
        assert spilled == 0, tile
        assert shared_memory <= limit, tile
        assert order == ORDERS[dtype, chunks], tile


_DEPTHWISE = """
import json
import torch
from bi_compile.templates.convolution import gpu_certificates as certificates
from bi_compile.templates.convolution.gpu_depthwise import Block
from bi_compile.templates.gpu import ahead

found = []
for block in (Block(64, 1, 2), Block(128, 4, 4)):
    order = str(certificates.order_depthwise(block, torch.bfloat16, {capability}))
    used = ahead.resources(certificates.compile_depthwise(block, torch.bfloat16, {capability}, 5))
    found.append([order, used.spilled])
print(json.dumps(found))
"""


@pytest.mark.parametrize("capability", [80, 86, 90, 100])
def test_depthwise_ones_are_one_chain_of_taps(capability):
    chain = "0"
    for _ in range(4):
        chain = f"fma(f32(x), f32(w), {chain})"
    rows = json.loads(run_compiled(_DEPTHWISE.format(capability=capability)))
    for order, spilled in rows:
        assert f"bf16(add(f32(bias), {chain}))" in order, order
        assert order == rows[0][0]
        assert spilled == 0
