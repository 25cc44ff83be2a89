"""Statistics and products of many factors end in canonical ops: compiled is eager, for any batch."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive, same_bits

PER_SAMPLE = {
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(1), -1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(1)),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "diff": lambda x: x.diff(dim=1),
    "trapezoid": lambda x: torch.trapezoid(x, dim=-1),
    "cumulative_trapezoid": lambda x: torch.cumulative_trapezoid(x, dim=1),
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6]),
    "trace of each": lambda x: torch.einsum("bii->b", x[:, :, :5]),
    "einsum": lambda x: torch.einsum("bij,bkj,bk->bi", x, x, x[..., 0]),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x),
    "nansum": lambda x: torch.where(x > 100, torch.nan, x).nansum(-1),
    "nanmean": lambda x: torch.where(x > 100, torch.nan, x).nanmean(-1),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "gradient": lambda x: torch.gradient(x, dim=1)[0],
    "outer": lambda x: x[:, 0, :, None] * x[:, 1, None, :],
    "histogram by bins": lambda x: F.one_hot(torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), 4).sum(-2),
}
WHOLE = {
    "cov": lambda x: torch.cov(x[0]),
    "weighted cov": lambda x: torch.cov(x[0], aweights=x[1, 0].abs()),
    "corrcoef": lambda x: torch.corrcoef(x[0]),
    "trace": lambda x: x[0].trace(),
    "dist": lambda x: torch.dist(x, x.flip(0), 3.0),
    "kron": lambda x: torch.kron(x[0], x[1]),
    "tensordot": lambda x: torch.tensordot(x, x, dims=([1, 2], [1, 2])),
    "multi_dot": lambda x: torch.linalg.multi_dot([x[0], x[1].t(), x[2]]),
    "inner": lambda x: torch.inner(x, x),
    "addr": lambda x: torch.addr(x[0], x[0, :, 0], x[1, 0]),
}
EVERYTHING = {**PER_SAMPLE, **WHOLE}


@pytest.mark.parametrize("name", EVERYTHING)
def test_is_canonical_and_near_float64(name):
    x = torch.randn(4, 5, 8)
    with bi_compile.eager():
        ours = EVERYTHING[name](x)
        strided = EVERYTHING[name](torch.stack([x, x], -1)[..., 0])
    assert_same_bits(ours, strided)
    torch.testing.assert_close(ours.double(), EVERYTHING[name](x.double()).double(), rtol=1e-4, atol=1e-5)


COMPILED = ("cosine_similarity", "renorm", "cumulative_trapezoid", "cross", "einsum", "logaddexp", "nanmean")


def together(x):
    return [PER_SAMPLE[name](x) for name in COMPILED]


def test_compiled_is_eager_for_any_batch():
    torch.compiler.reset()
    x = order_sensitive(9, 5, 300)
    with bi_compile.eager():
        want = together(x)
    compiled = torch.compile(together, backend="batch_invariant")
    with collect() as report:
        for part in (slice(0, 9), slice(4, 7)):
            for name, got, whole in zip(COMPILED, compiled(x[part]), want, strict=True):
                assert_same_bits(got, whole[part], name)
    assert not report.left_alone
    other = x.transpose(1, 2).contiguous().transpose(1, 2)
    same = [same_bits(a, b) for a, b in zip(together(x), together(other), strict=True)]
    assert not all(same), "stock torch sees the layout"
