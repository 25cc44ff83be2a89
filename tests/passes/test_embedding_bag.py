"""embedding_bag becomes gathers and additions in order; plain embeddings stay."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.passes.tables import check_left_alone, check_rewritten

WEIGHT = torch.randn(11, 6)
INDICES = torch.tensor([3, 3, 10, 0, 4, 4, 4, 1, 2, 9])
OFFSETS = torch.tensor([0, 2, 2, 5, 9, 10])  # the second and the last bag are empty
SCALES = torch.rand(10)
BAGS = {"bi_compile.scatter_reduce"}


def bag(mode, **options):
    def fn(weight, indices, offsets, *scales):
        return F.embedding_bag(
            indices, weight, offsets, mode=mode, per_sample_weights=scales[0] if scales else None, **options
        )

    return fn


REWRITTEN = {
    "sum": (bag("sum"), (WEIGHT, INDICES, OFFSETS), BAGS),
    "weighted sum": (bag("sum"), (WEIGHT, INDICES, OFFSETS, SCALES), BAGS),
    "mean": (bag("mean"), (WEIGHT, INDICES, OFFSETS), BAGS),
    "max": (bag("max"), (WEIGHT, INDICES, OFFSETS), BAGS),
    "sum with padding": (bag("sum", padding_idx=4), (WEIGHT, INDICES, OFFSETS), BAGS),
    "mean with padding": (bag("mean", padding_idx=3), (WEIGHT, INDICES, OFFSETS), BAGS),
    "max with padding": (bag("max", padding_idx=3), (WEIGHT, INDICES, OFFSETS), BAGS),
    "the last offset included": (bag("mean", include_last_offset=True), (WEIGHT, INDICES, OFFSETS), BAGS),
    "bags of one length": (lambda w, i: F.embedding_bag(i.view(2, 5), w), (WEIGHT, INDICES), BAGS),
}
LEFT_ALONE = {"embedding": (lambda w, i: F.embedding(i, w), (WEIGHT, INDICES))}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@pytest.mark.parametrize(
    ("mode", "options", "weighted"),
    [
        ("sum", {}, True),
        ("sum", {"padding_idx": 4}, False),
        ("mean", {"padding_idx": 3}, False),
        ("max", {"padding_idx": 3}, False),
    ],
    ids=str,
)
def test_gradients_are_near_float64(mode, options, weighted):
    def gradients(weight, scales):
        weight, scales = weight.clone().requires_grad_(), scales.clone().requires_grad_()
        out = bag(mode, **options)(weight, INDICES, OFFSETS, *([scales] if weighted else []))
        (out * torch.arange(1.0, 37).view(6, 6)).sum().backward()
        return [weight.grad, scales.grad] if weighted else [weight.grad]

    with bi_compile.eager():
        ours = gradients(WEIGHT, SCALES)
    for got, exact in zip(ours, gradients(WEIGHT.double(), SCALES.double()), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_by_frequency_are_those_of_an_embedding():
    grads = []
    for fn in (
        lambda w: F.embedding_bag(INDICES, w, OFFSETS, mode="sum", scale_grad_by_freq=True),
        lambda w: F.embedding(INDICES, w, scale_grad_by_freq=True),
    ):
        weight = WEIGHT.clone().requires_grad_()
        with bi_compile.eager():
            fn(weight).sum().backward()
        grads.append(weight.grad)
    assert_same_bits(*grads)
    torch.testing.assert_close(grads[0][[3, 4, 9, 5], 0], torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_a_bag_does_not_see_the_others_compiled_or_eager():
    torch.compiler.reset()
    model = torch.nn.EmbeddingBag(50, 33, mode="mean", padding_idx=7)
    model.weight.data = order_sensitive(50, 33)
    bags = torch.randint(0, 50, (16, 40))

    def run(fn, bags):
        model.zero_grad()
        out = fn(bags)
        out[0].sum().backward()
        return out.detach(), model.weight.grad

    with bi_compile.eager():
        whole, _ = run(model, bags)
        _, grad = run(model, bags[3:4])
    compiled = torch.compile(model, backend="batch_invariant")
    with collect() as report:
        for part in (slice(0, 16), slice(3, 9)):
            out, weight_grad = run(compiled, bags[part])
            assert_same_bits(out, whole[part])
        assert_same_bits(weight_grad, grad)
    assert not report.left_alone
    back = F.embedding_bag(bags.flip(1), model.weight, mode="mean")
    assert not same_bits(back, F.embedding_bag(bags, model.weight, mode="mean")), "no change of order shows"
