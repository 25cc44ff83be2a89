"""The suite for canonical ops, on CUDA tensors: batches, layouts, repeats, compiled graphs, fake tensors.

Oracles and stock's failures on the device are in the tests of each family; the control here is for ops of
which stock on a GPU is known to change with the batch.
"""

import pytest
import torch
import torch.nn.functional as F

import bi_compile.pipeline  # noqa: F401  (defines all ops)
from bi_compile.testing import conformance
from bi_compile.testing.values import values

DEVICE = "cuda"
BF16, FP32 = torch.bfloat16, torch.float32
CHECKS = ("batch", "layout", "repeat", "compiled", "fake")
bi = torch.ops.bi_compile


def draw(*shape: int, dtype: torch.dtype = FP32, seed: int = 0, kind: str = "normal") -> torch.Tensor:
    return values(kind, shape, dtype, seed).to(DEVICE)


def attend(q, k, v):
    return bi.attention(q, k, v, None, True, 0.2)[0]


# Op, stock, shapes of arguments, their batch dims, the dtypes in which stock has to fail.
CASES = {
    "mm": (
        lambda x, w: bi.mm(x, w.t()),
        lambda x, w: torch.mm(x, w.t()),
        ((40, 4096), (1024, 4096)),
        (0, None),
        (BF16,),
    ),
    "linear": (
        lambda x, w: bi.linear(x, w, None),
        F.linear,
        ((40, 3, 700), (41, 700)),
        (0, None),
        (),
    ),
    "bmm": (bi.bmm, torch.bmm, ((9, 5, 301), (9, 301, 7)), (0, 0), ()),
    "softmax": (
        lambda x: bi.softmax(x, -1),
        lambda x: x.softmax(-1),
        ((40, 1501),),
        (0,),
        (),
    ),
    "sum": (lambda x: bi.sum(x, [1], False), lambda x: x.sum(1), ((33, 100_000),), (0,), (FP32,)),
    "layer_norm": (
        lambda x, w: bi.layer_norm(x, w.shape, w, w, 1e-5)[0],
        lambda x, w: F.layer_norm(x, w.shape, w, w),
        ((40, 1501), (1501,)),
        (0, None),
        (),
    ),
    "attention": (
        attend,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2),
        ((9, 2, 37, 16), (9, 2, 37, 16), (9, 2, 37, 16)),
        (0, 0, 0),
        (),
    ),
    "convolution": (
        lambda x, w: bi.convolution(x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        lambda x, w: F.conv2d(x, w, padding=1),
        ((9, 19, 7, 9), (21, 19, 3, 3)),
        (0, None),
        (),
    ),
}


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_conforms(name, dtype):
    op, stock, shapes, batch_dims, fails = CASES[name]
    arguments = tuple(draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    torch.compiler.reset()
    fake = isinstance(op, torch._ops.OpOverloadPacket)
    checks = [check for check in CHECKS if check != "fake" or fake] + ["control"] * (dtype in fails)
    made = conformance(op, [arguments], stock=stock, batch_dims=batch_dims, sizes=(1, 2, 7), checks=checks)
    assert set(made) == set(checks)
