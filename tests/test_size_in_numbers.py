"""The size of the batch among the numbers a model computes with: a sample would get others in another batch.

Each case is a control first: in eager PyTorch samples do get others. Then it is refused, by name.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.exc import InductorError

import bi_compile
from bi_compile.errors import BatchSizeWarning
from tests.bits import assert_same_bits

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(48).view(6, 8)
TABLE = nn.Parameter(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)))
WINDOW = TABLE.detach()[:1, None, :3]

WITHIN_SAMPLES = {
    "roll": lambda x: x.roll(x.shape[0], 1),
    "repeat": lambda x: x.repeat(1, x.shape[0]),
    "tile and sum": lambda x: x.tile(1, x.shape[0]).sum(-1),
    "repeat_interleave": lambda x: x.repeat_interleave(x.shape[0], 1),
    "expand": lambda x: x[:, None].expand(-1, x.shape[0], -1).sum(1),
    "pad": lambda x: F.pad(x, (0, x.shape[0])),
    "pad in front": lambda x: F.pad(x, (x.shape[0], 0))[:, :8],
    "topk": lambda x: x.topk(x.shape[0] - 1)[0],
    "kthvalue": lambda x: x.kthvalue(x.shape[0] // 2, dim=1)[0],
    "first": lambda x: x[:, : x.shape[0]],
    "first, and their sum": lambda x: x[:, : x.shape[0]].sum(-1),
    "last": lambda x: x[:, -x.shape[0] :],
    "one": lambda x: x.narrow(1, x.shape[0] - 1, 1),
    "split": lambda x: x.split(x.shape[0], 1)[0],
    "two parts": lambda x: x.split([x.shape[0], 8 - x.shape[0]], 1)[1],
    "tril": lambda x: (x[:, :, None] * x[:, None, :]).tril(x.shape[0] - 3),
    "resampling": lambda x: F.interpolate(x[:, None], size=x.shape[0] * 2)[:, 0],
    "padded convolution": lambda x: F.conv1d(x[:, None], WINDOW, padding=x.shape[0])[:, 0],
    "dilated convolution": lambda x: F.conv1d(
        F.pad(x, (9, 9))[:, None], WINDOW, padding=0, dilation=x.shape[0]
    )[:, 0, :1],
    "scaled sum": lambda x: torch.addmm(x, x, TABLE[:8], beta=1 / x.shape[0]),
    "spectrum": lambda x: torch.fft.rfft(x, n=x.shape[0]).real,
    "complex factor": lambda x: (torch.view_as_complex(x.view(-1, 4, 2)) * x.shape[0]).imag,
    "shifted ids": lambda x: F.embedding((x > 0).long() + x.shape[0], TABLE),
    "ids modulo": lambda x: F.embedding((x.abs() * 100).long() % x.shape[0], TABLE),
    "mask of integers": lambda x: torch.where((x * 4).long() > x.shape[0] - 5, x, 0),
    "mask": lambda x: torch.where(x > x.shape[0] - 4, x, 0),
    "scatter": lambda x: x.scatter(1, torch.full((x.shape[0], 1), x.shape[0] - 1), 0.0),
    "index_copy": lambda x: x.index_copy(1, torch.full((1,), x.shape[0] - 1), x[:, :1] * 0),
    "index_put": lambda x: x.index_put(
        (torch.arange(x.shape[0]), torch.full((x.shape[0],), x.shape[0] - 1)), torch.zeros(())
    ),
    "gather": lambda x: x.gather(1, torch.full((x.shape[0], 1), x.shape[0] - 1)),
    "index_select": lambda x: x.index_select(1, torch.full((1,), x.shape[0] - 1)),
}
OF_WEIGHTS = {
    "one for each place": lambda x: x + TABLE[: x.shape[0]],
    "gate for each place": lambda x: x * TABLE[: x.shape[0]],
    "beside each place": lambda x: torch.cat([x, TABLE[: x.shape[0]]], 1),
    "matrix for each place": lambda x: x[:, None] @ TABLE[:56].view(7, 8, 8)[: x.shape[0]],
    "by place": lambda x: x + TABLE[torch.arange(x.shape[0])],
    "embedded place": lambda x: x + F.embedding(torch.arange(x.shape[0]), TABLE),
    "last": lambda x: x + TABLE[x.shape[0] - 1],
    "rolled": lambda x: x + TABLE.roll(x.shape[0], 0)[0],
    "mean of as many": lambda x: x + TABLE[: x.shape[0]].mean(0),
    "sum of copies": lambda x: x + TABLE[0].expand(x.shape[0], -1).sum(0),
    "second part": lambda x: x + TABLE.split([x.shape[0], 60 - x.shape[0]])[1][0],
    "running sum of copies": lambda x: x + TABLE[0].expand(x.shape[0], -1).cumsum(0),
    "as many columns": lambda x: x @ TABLE[:8, : x.shape[0]],
    "running sum": lambda x: x + TABLE[: x.shape[0]].cumsum(0)[-1],
    "gathered": lambda x: x + TABLE.gather(0, torch.full((1, 8), x.shape[0])),
    "borders": lambda x: torch.searchsorted(TABLE[: x.shape[0], 0].sort()[0], x).float(),
    "of integers": lambda x: x + F.embedding(IDS[:, 0][: x.shape[0]], TABLE),
}
SIX = nn.Parameter(TABLE.detach()[:6].clone())
OF_FIXED_SIZE = {
    "sum": lambda x: x + SIX,
    "gate": lambda x: x * SIX[:, :1].sigmoid(),
    "mask": lambda x: torch.where(SIX > 0, x, 0),
    "beside": lambda x: torch.cat([x, SIX], 1),
    "matrix": lambda x: (x[:, None] @ SIX[:, :, None]).squeeze(1),
    "bias": lambda x: x @ TABLE[:8] + SIX[:, :1],
    "addend": lambda x: torch.addmm(SIX, x, TABLE[:8]),
    "distances": lambda x: torch.cdist(x[:, None], SIX[:, None]),
    "scattered": lambda x: x.scatter_add(1, torch.zeros(6, 1, dtype=torch.long), SIX[:, :1]),
    "added by index": lambda x: x.index_add(1, torch.tensor([0]), SIX[:, :1]),
    "written": lambda x: x.slice_scatter(SIX[:, :2], 1, 0, 2),
    "written into": lambda x: SIX.slice_scatter(x[:, :2], 1, 0, 2),
    "keys": lambda x: F.scaled_dot_product_attention(*(t.view(6, 1, 2, 4) for t in (x, SIX, x))),
    "mask of keys": lambda x: F.scaled_dot_product_attention(
        x.view(6, 1, 2, 4), x.view(6, 1, 2, 4), x.view(6, 1, 2, 4), attn_mask=SIX[:, None, None, :2]
    ),
}
"""Weights of as many rows as one batch has, of which the model can take no other."""

ALIKE = {
    "copies": lambda x, w: x + w[:1].expand(6, -1),
    "copies beside": lambda x, w: torch.cat([x, w[:1].expand(6, -1)], 1),
    "square": lambda x, w: x @ torch.cat([w, w[:2]]),
    "addend": lambda x, w: torch.addmm(w[:1].expand(6, -1), x, torch.cat([w, w[:2]])),
    "distances": lambda x, w: torch.cdist(x, w),
    "scattered": lambda x, w: x.scatter_add(1, torch.zeros(6, 1, dtype=torch.long), w[:1, :1].expand(6, 1)),
    "written": lambda x, w: x.slice_scatter(w[:1, :2].expand(6, 2), 1, 0, 2),
    "along the other dim": lambda x, w: x[:, :6] + w[:, 0],
    "matrix": lambda x, w: x[:, None] @ w[:1, :, None].expand(6, -1, -1),
}

RETURNED = {
    "shifted": lambda ids: ids + ids.shape[0],
    "rolled": lambda ids: ids.roll(ids.shape[0] - 1, 1),
    "with their places": lambda ids: ids + torch.arange(ids.shape[0])[:, None],
    "running count": lambda ids: ids.cumsum(0),
    "a weight of none": lambda ids: F.embedding(torch.full_like(ids, ids.shape[0]), TABLE),
}


OF_CHOSEN_ROWS = {
    "their mean": lambda x: x + x[x.sum(1) > 0].mean(0),
    "how many": lambda x: x * (x > 0).nonzero().shape[0],
    "how many elements": lambda x: x * x[x > 0].numel(),
    "different ids": lambda x: x * torch.unique((x * 3).long()).shape[0],
    "counts": lambda x: x * torch.bincount((x.abs() * 3).long().flatten(), minlength=8)[:8],
}
PARTS = {
    "chunk": lambda x: x.chunk(x.shape[0], 1)[0] + 0,
    "tensor_split": lambda x: x.tensor_split(x.shape[0], 1)[0] + 0,
}


def refused(fn, x):
    torch.compiler.reset()
    with torch.no_grad():
        assert not same(fn(x)[2:5], fn(x[2:5])), "eager PyTorch gives samples the same numbers: no case"
        with pytest.raises(InductorError, match="BatchMixingError: ") as error:
            torch.compile(fn, backend="batch_invariant")(x)
    return str(error.value)


def same(a, b):
    return a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("name", WITHIN_SAMPLES)
def test_the_size_of_the_batch_is_no_argument_of_what_works_within_samples(name):
    refused(WITHIN_SAMPLES[name], X.clone())


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_the_size_of_the_batch_does_not_choose_weights(name):
    refused(OF_WEIGHTS[name], X.clone())


@pytest.mark.parametrize("dynamic", [None, False])
@pytest.mark.parametrize("name", OF_FIXED_SIZE)
def test_weights_do_not_tell_the_places_of_a_fixed_size_apart(name, dynamic):
    fn, turned = OF_FIXED_SIZE[name], [1, 2, 3, 4, 5, 0]
    torch.compiler.reset()
    with torch.no_grad():
        assert not same(fn(X)[turned], fn(X[turned])), "every place has the same numbers: no case"
        with pytest.raises(InductorError, match="BatchMixingError: "):
            torch.compile(fn, backend="batch_invariant", dynamic=dynamic)(X.clone())


@pytest.mark.parametrize("name", ALIKE)
def test_weights_that_are_the_same_for_every_place_of_a_fixed_size(name):
    fn, turned = ALIKE[name], [1, 2, 3, 4, 5, 0]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: fn(x, SIX), backend="batch_invariant")
    with torch.no_grad():
        assert_same_bits(compiled(X.clone())[turned], compiled(X[turned]))
        torch.testing.assert_close(compiled(X.clone()), fn(X.double(), SIX.double()).float())


@pytest.mark.parametrize("name", OF_CHOSEN_ROWS)
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True)
def test_neither_is_the_number_of_rows_that_the_data_choose(name):
    """In one graph. Behind a graph break, which is Dynamo's default, nothing says whose the rows are."""
    refused(OF_CHOSEN_ROWS[name], X.clone())


@pytest.mark.parametrize("name", RETURNED)
def test_numbers_that_tell_of_the_batch_are_no_results(name):
    assert "what it returns" in refused(RETURNED[name], IDS.clone())


def test_the_refusal_names_the_line_and_what_the_number_does():
    text = refused(WITHIN_SAMPLES["roll"], X.clone())
    assert "x.roll(x.shape[0], 1)" in text
    text = refused(WITHIN_SAMPLES["repeat"], X.clone())
    assert "the number of samples decides the size of dim 1" in text


def test_only_the_first_op_is_named():
    """Sizes are handed on; what is computed with them is not to blame."""
    with torch.no_grad():
        report = bi_compile.explain(lambda x: x.repeat(1, x.shape[0]).relu() * 2)(X.clone())
    assert [op.op for op in report.refused] == ["aten.repeat.default"]


@pytest.mark.usefixtures("nothing_told_yet")
@pytest.mark.parametrize("name", PARTS)
def test_as_many_parts_of_another_dim_are_told(name):
    """Dynamo has a plain number there. Samples one by one are followed: tests/analysis/test_loops.py."""
    assert not same(PARTS[name](X)[2:5], PARTS[name](X[2:5]))
    with torch.no_grad(), pytest.warns(BatchSizeWarning, match="takes B as a plain number"):
        torch.compile(PARTS[name], backend="batch_invariant")(X.clone())


def test_what_is_too_large_to_be_tried_is_refused_too():
    def far(x):
        places = torch.arange(x.shape[0], x.shape[0] + 2**23)
        return x + places[: x.shape[1]]

    refused(far, X.clone())
    refused(lambda x: x + torch.linspace(0, x.shape[0], 2**23)[-8:], X.clone())
