"""The shipped convolutions as compiled for GPUs: the order of matrix products w x windows of x, no spills."""

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
for tile in gpu_tiles.shipped(Processor(capability, 132, 101376), dtype):
    for chunked in {chunked}:
        used = ahead.resources(gpu_certificates.compile_convolution(tile, dtype, capability, chunked))
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
    ("float32", True): f"add(bias, sum[512 of K](0; sum[32 of 512](0; {BLOCK}))) by tf32 k8",
}


@pytest.mark.parametrize(
    ("capability", "dtype", "chunked"),
    [
        (80, "bfloat16", [False]),
        (86, "bfloat16", [True]),
        (90, "bfloat16", [False, True]),
        (90, "float32", [True]),
        (100, "bfloat16", [False]),
    ],
)
def test_every_shipped_tile(capability, dtype, chunked):
    rows = json.loads(run_compiled(_TABLE.format(capability=capability, dtype=dtype, chunked=chunked)))
    assert rows
    for tile, chunks, order, spilled, shared_memory in rows:
        assert spilled == 0, tile
        assert shared_memory <= 101376, tile
        if capability < 100:
            assert order == ORDERS[dtype, chunks], tile
        else:
            assert order == "sums in Blackwell's tensor memory are not followed"
