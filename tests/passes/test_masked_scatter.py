"""Elements handed out by a mask: each sample must take what it brings, which is seen when the graph runs."""

import pytest
import torch

from bi_compile.report import CANONICAL, collect
from bi_compile.testing import BatchVarianceError, assert_batch_invariant

TOKENS, IMAGE, FEATURES = 11, 7, 300
IDS = torch.full((5, TOKENS), 3)
for row, places in zip(IDS, ([0, 5], [3, 4], [9, 10], [0, 10], [7, 8]), strict=True):
    row[places] = IMAGE
EMBEDDED, PATCHES = torch.randn(5, TOKENS, FEATURES), torch.randn(5, 2, 40)
WEIGHT = torch.randn(FEATURES, 40)


def with_images(embedded, ids, patches):
    """As models of images and text do: features of images in the places of their tokens."""
    images = torch.nn.functional.linear(patches, WEIGHT.to(patches))
    return embedded.masked_scatter((ids == IMAGE).unsqueeze(-1).expand_as(embedded), images)


def positive(x):
    return x.masked_scatter(x > 0, x * 2)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


def test_samples_that_take_what_they_bring_keep_their_bits():
    with collect() as report:
        compiled = torch.compile(with_images, backend="batch_invariant", fullgraph=True)
        assert_batch_invariant(
            compiled, EMBEDDED, IDS, PATCHES, sizes=(1, 2, 3, 7, 16), trials=2, reference=with_images
        )
    ops = {v.op: v.kind for v in report.verdicts}
    assert ops["bi_compile.matched_masked_scatter"] == CANONICAL
    assert report.promised


@pytest.mark.parametrize("dynamic", [None, False], ids="dynamic={}".format)
def test_samples_that_do_not_are_stopped(dynamic):
    compiled = torch.compile(positive, backend="batch_invariant", dynamic=dynamic)
    with pytest.raises(RuntimeError, match="masked_scatter mixes the samples of this batch"):
        compiled(torch.randn(4, 30))
    same = torch.rand(4, 6) + torch.tensor([1.0, 1, -2, -2, -2, 1])
    with pytest.raises(RuntimeError, match="masked_scatter mixes the samples of this batch"):
        compiled(same)


def test_control_stock_gives_a_sample_what_others_bring():
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(positive, torch.randn(5, 30), sizes=(1, 2, 3, 7), trials=1)


def test_batches_of_one_and_none_take_what_there_is():
    compiled = torch.compile(positive, backend="batch_invariant")
    for x in torch.randn(1, 30), torch.randn(0, 30):
        assert torch.equal(compiled(x), positive(x))


def test_elements_that_all_samples_share_are_refused():
    shared = torch.randn(1000)
    with pytest.raises(
        Exception, match=r"BatchMixingError: aten.masked_scatter mixes the samples .* a count"
    ):
        torch.compile(lambda x: x.masked_scatter(x > 0, shared), backend="batch_invariant")(
            torch.randn(4, 30)
        )
