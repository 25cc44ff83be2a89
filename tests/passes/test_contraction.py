"""Matrix products of every shape become one contraction; those of integers stay as they are."""

import pytest
import torch
from torch._inductor.exc import InductorError

import bi_compile
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_left_alone, check_rewritten

A, B, V = torch.randn(4, 7) * 4, torch.randn(7, 6) * 4, torch.randn(6)
C, D = torch.randn(3, 4, 5) * 4, torch.randn(3, 5, 6) * 4

REWRITTEN = {
    "mm": (torch.mm, (A, B), {"bi_compile.mm"}),
    "bmm": (torch.bmm, (C, D), {"bi_compile.bmm"}),
    "addmm": (lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), (V, A, B), {"bi_compile.addmm"}),
    "baddbmm": (torch.baddbmm, (C[:, :, :1], C, D), {"bi_compile.baddbmm"}),
    "addbmm": (torch.addbmm, (torch.zeros(4, 6), C, D), {"bi_compile.addmm"}),
    "mv": (torch.mv, (A, A[0]), {"bi_compile.mm"}),
    "addmv": (torch.addmv, (A[:, 0], A, A[0]), {"bi_compile.addmm"}),
    "dot": (torch.dot, (A[0], A[1]), {"bi_compile.mm"}),
    "vdot": (torch.vdot, (A[0], A[1]), {"bi_compile.mm"}),
    "matmul of 1 and 2 dims": (torch.matmul, (A[0], B), {"bi_compile.mm"}),
    "matmul of 4 dims": (torch.matmul, (C[None].expand(2, 3, 4, 5), D), {"bi_compile.bmm"}),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bki", a, b), (C, D), {"bi_compile.bmm"}),
    "einsum of three": (
        lambda a, b: torch.einsum("bij,bjk,k->bi", a, b, b[0, 0]),
        (C, D),
        {"bi_compile.bmm"},
    ),
    "linear": (torch.nn.functional.linear, (C, A[:, :5]), {"bi_compile.mm"}),
    "bilinear": (
        lambda a, b: torch.nn.functional.bilinear(a, a[:, :6], torch.stack([b, b + 1, b * b])),
        (A, B),
        {"bi_compile.mm", "bi_compile.sum"},
    ),
    "outer": (lambda a: torch.einsum("i,j->ij", a[0], a[1]), (A,), set()),
}
LEFT_ALONE = {
    "integers": (torch.mm, (A.long(), B.long())),
    "integers in batches": (torch.bmm, (C.long(), D.long())),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@torch.no_grad()
def test_quantised_by_token_it_is_exact_in_any_batch():
    torch.compiler.reset()
    weight, scales = torch.randint(-127, 128, (64, 32), dtype=torch.int8), torch.rand(32)

    def layer(x):
        scale = x.abs().amax(-1, keepdim=True) / 127
        whole = (x / scale).round().to(torch.int8)
        return torch._int_mm(whole, weight).float() * scale * scales

    x = order_sensitive(40, 64)
    compiled = torch.compile(layer, backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(compiled, x, trials=1, reference=layer)
    with bi_compile.eager():
        outside = layer(x)
    assert_same_bits(outside, compiled(x))
    with pytest.raises(InductorError, match="_int_mm mixes the samples"):
        torch.compile(lambda x: torch._int_mm(x.T.contiguous(), x).float(), backend="batch_invariant")(
            torch.ones(40, 64, dtype=torch.int8)
        )
