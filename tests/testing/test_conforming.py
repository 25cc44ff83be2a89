"""`conformance`: an op of ours passes, each defect fails its check, and so do samples that show nothing."""

import pytest
import torch

import bi_compile.templates.reduction.contract  # noqa: F401
from bi_compile.templates.reduction import oracle
from bi_compile.testing import ConformanceError, VacuousCheckError, conformance
from bi_compile.testing.conforming import CHECKS
from bi_compile.testing.values import values

SAMPLES = [
    (values("normal", (40, 1500), torch.float32, 0), [1]),
    (values("normal", (3, 41), torch.bfloat16, 1), [1]),
]
FEW = {"batch_dims": (0, None), "sizes": (1, 2, 7)}


def stock(x, dims):
    return torch.sum(x, dims)


def tree(x, dims, keepdim=False):
    return oracle.rounded(oracle.sum(oracle.as_rows(x, dims)), x.dtype)


def ours(x, dims):
    return torch.ops.bi_compile.sum(x, dims, False)


def test_an_op_of_ours_conforms():
    samples = [(*arguments, False) for arguments in SAMPLES]
    made = conformance(
        torch.ops.bi_compile.sum,
        samples,
        stock=torch.sum,
        oracle=tree,
        batch_dims=(0, None, None),
        sizes=(1, 2, 7),
    )
    assert made == tuple(CHECKS)


def test_stock_pytorch_does_not():
    checks = ("batch", "oracle", "layout", "threads", "repeat")
    with pytest.raises(ConformanceError) as found:
        conformance(stock, SAMPLES, stock=stock, oracle=tree, checks=checks, **FEW)
    assert {"oracle", "layout"} <= set(found.value.failures) <= {"batch", "oracle", "layout"}


calls = []


def remembers(x, dims):
    calls.append(x)
    return ours(x, dims) + 1e-6 * (len(calls) % 2)


DEFECTS = {
    "batch": lambda x, dims: ours(x, dims) * (1 + 2**-7 * (len(x) > 4)),
    "oracle": lambda x, dims: ours(x, dims).nextafter(torch.ones((), dtype=x.dtype)),
    "layout": lambda x, dims: ours(x, dims) * (1 + 2**-7 * (not x.is_contiguous())),
    "threads": lambda x, dims: ours(x, dims) * (1 + 2**-7 * (torch.get_num_threads() > 1)),
    "repeat": remembers,
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_fails_its_check(name):
    with pytest.raises(ConformanceError, match="checks failed") as found:
        conformance(DEFECTS[name], SAMPLES[:1], stock=stock, oracle=tree, checks=[name], **FEW)
    assert list(found.value.failures) == [name]


def test_samples_that_show_nothing_are_refused():
    tame = [(torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]), [1])]
    with pytest.raises(ConformanceError, match="passing them shows nothing"):
        conformance(ours, tame, stock=stock, checks=["control"], **FEW)


def test_where_nothing_is_compared_nothing_passes():
    with pytest.raises(VacuousCheckError, match="samples is empty"):
        conformance(ours, [], stock=stock, checks=("batch", "layout"), **FEW)
    with pytest.raises(VacuousCheckError, match="none of the checks oracle has anything to compare"):
        conformance(ours, SAMPLES, stock=stock, checks=("oracle",), **FEW)
    with pytest.raises(ConformanceError, match="layout: VacuousCheckError: no tensor is returned"):
        conformance(lambda x, dims: 3.0, SAMPLES, stock=stock, checks=("layout",), **FEW)
    with pytest.raises(ValueError, match="checks must be one of 'batch', 'oracle'"):
        conformance(ours, SAMPLES, stock=stock, checks=("batchh",), **FEW)


def test_a_control_that_shows_nothing_is_none():
    one = [(torch.ones(1, 3), [1])]
    with pytest.raises(ConformanceError, match="control: VacuousCheckError: stock PyTorch passes"):
        conformance(ours, one, stock=stock, checks=("control",), **FEW)
