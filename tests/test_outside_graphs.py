"""What Dynamo runs outside graphs, where whole ops arrive taken apart: bits of `eager()`, or a warning."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile import dynamo
from bi_compile.eager_mode import OutsideGraphs
from bi_compile.errors import LeakWarning, UnsupportedOpError
from bi_compile.testing.grammar import OPS
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.subjects import Outcome, Subject
from tests.bits import assert_same_bits, same_bits

ROWS = (0, 1, 4, 32)


def results(module, x):
    """Of all of x and of some rows, and whether anybody was warned."""
    dynamo._warned.clear()  # once for each line, and here all have one
    with warnings.catch_warnings(record=True) as caught, torch.no_grad(), OutsideGraphs():
        warnings.simplefilter("always")
        whole, rows = module(x), [module(x[i : i + 1]) for i in ROWS]
    return whole, rows, any(issubclass(w.category, LeakWarning) for w in caught)


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_bits_of_eager_mode_in_any_batch(name):
    rng = random.Random(name)
    for shape in ((37,), (29, 5), (3, 30, 4)):
        for dtype in ("float32", "bfloat16"):
            step = (name, tuple(rng.randrange(16) for _ in range(6)))
            subject = Subject.of(RandomModel.fitting(shape, [step], dtype=dtype), gradients=False)
            if isinstance(subject, Outcome) or not subject.model.steps:
                continue
            x = subject.pool.repeat(7, *[1] * len(shape))[:33]  # cdist changes its way after 25 rows
            try:
                with torch.no_grad(), bi_compile.eager():
                    want = subject.module(x)
            except UnsupportedOpError:
                want = None
            whole, rows, warned = results(subject.module, x)
            if not warned:
                assert want is not None, "refused by eager mode, and run without a word"
                assert_same_bits(whole, want)
                for i, row in zip(ROWS, rows, strict=True):
                    assert_same_bits(whole[i : i + 1], row)


def test_distances_in_any_batch():
    """More than 25 rows make products of matrices of them: stock changes its bits there."""
    table = torch.randn(20, 30)
    x = torch.randn(33, 30)
    for distances in (
        torch.cdist,
        torch.ops.aten.cdist,
        torch.ops.aten.cdist.default,
        lambda a, b: torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist"),
    ):
        whole, rows, warned = results(lambda x, d=distances: d(x, table), x)
        torch.compiler.reset()
        bi_compile.mark_batch(table, None)
        compiled = torch.compile(lambda x, table, d=distances: d(x, table), backend="batch_invariant")
        with bi_compile.eager():
            assert_same_bits(distances(x, table), whole)
        assert not warned
        assert_same_bits(compiled(x, table), whole)
        for i, row in zip(ROWS, rows, strict=True):
            assert_same_bits(row, whole[i : i + 1])
            assert_same_bits(compiled(x[i : i + 1], table), row)
        torch.testing.assert_close(whole, torch.cdist(x.double(), table.double()).float())
    assert not same_bits(torch.cdist(x, table)[:1], torch.cdist(x[:1], table)), "the control"


HEADS = {
    "plain": ((4, 70, 16), (4, 70, 16), (4, 70, 16), {}),
    "causal": ((4, 70, 16), (4, 70, 16), (4, 70, 16), {"is_causal": True}),
    "grouped": ((4, 70, 16), (2, 70, 16), (2, 70, 16), {"enable_gqa": True}),
    "masked": ((4, 70, 16), (4, 70, 16), (4, 70, 16), {"attn_mask": torch.rand(1, 1, 1, 70) < 0.8}),
    "other values": ((4, 70, 24), (4, 70, 24), (4, 70, 16), {}),
    "three dims": ((70, 16), (70, 16), (70, 16), {}),
    "five dims": ((2, 4, 70, 16), (2, 4, 70, 16), (2, 4, 70, 16), {}),
}


TAKEN_APART = {"other values", "five dims"}
if torch.__version__ < (2, 14):
    TAKEN_APART.add("three dims")


@pytest.mark.parametrize("name", HEADS)
def test_attention(name):
    """Stock takes apart what its fused op does not take; that cannot be caught, and is reported."""
    *shapes, options = HEADS[name]
    q, k, v = (torch.randn(33, *shape) for shape in shapes)

    def attend(i):
        return F.scaled_dot_product_attention(q[i], k[i], v[i], **options)

    with torch.no_grad(), bi_compile.eager():
        want = attend(slice(None))
    whole, rows, warned = results(lambda i: attend(i.flatten()), torch.arange(33)[:, None])
    assert warned == (name in TAKEN_APART)
    if not warned:
        assert_same_bits(whole, want)
    for i, row in zip(ROWS, rows, strict=True):
        assert_same_bits(row, whole[i : i + 1])
    torch.testing.assert_close(whole, want, rtol=1e-4, atol=1e-5)


def test_a_refusal_names_the_line_and_a_way_out_of_eager_mode():
    with bi_compile.eager(), pytest.raises(UnsupportedOpError, match=r"test_outside_graphs\.py") as refused:
        torch.randn(3)
    assert 'bi_compile.eager(on_unsupported="warn")' in str(refused.value)
    assert "options=" not in str(refused.value)
