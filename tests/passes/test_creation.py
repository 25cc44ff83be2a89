"""Numbers at equal distances have one formula: compiled, outside graphs, with static and symbolic sizes."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits
from tests.passes.tables import check_left_alone, check_rewritten, op_names, traced

X = torch.randn(3, 41)

CREATED = {
    "linspace": lambda x: torch.linspace(-1, 1, 41) * x,
    "linspace in fp64": lambda x: torch.linspace(-0.3, 7, 1000, dtype=torch.float64) + x[:, :1],
    "linspace of one": lambda x: torch.linspace(0.3, 9, 1) + x,
    "linspace between tensors": lambda x: torch.linspace(torch.tensor(0.1), torch.tensor(0.7), 41) * x,
    "arange of fractions": lambda x: torch.arange(0.1, 4.2, 0.1) * x,
    "arange of fractions, downwards": lambda x: torch.arange(3, -1.1, -0.1) * x,
    "arange as floats": lambda x: torch.arange(41, dtype=torch.bfloat16) * x,
    "affine_grid": lambda x: F.affine_grid(x[:, :6].reshape(3, 2, 3), [3, 1, 5, 7], align_corners=False),
    "affine_grid in three dims": lambda x: F.affine_grid(
        x[:, :12].reshape(3, 3, 4), [3, 1, 5, 7, 3], align_corners=True
    ),
}
LEFT_ALONE = {
    "arange of integers": (lambda x: torch.arange(3, 41, 2) + x.long()[:, :19], (X,)),
    "linspace of integers": (lambda x: torch.linspace(0, 40, 41, dtype=torch.int64) + x.long(), (X,)),
}


@pytest.mark.parametrize("name", CREATED)
def test_is_rewritten(name):
    check_rewritten(CREATED[name], (X,), set())
    assert not {"aten.linspace", "aten.arange.start_step"} & op_names(traced(CREATED[name], X))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


def _created(x):
    n = x.shape[1]
    along = torch.linspace(0.1, 0.7, n), torch.linspace(0.1, 0.7, n).bfloat16(), torch.arange(n) * 0.1
    steps = torch.arange(0.1, 0.7 * n, 0.7)[:n], torch.arange(n, dtype=torch.bfloat16)
    return torch.stack([a.float() * x for a in (*along, *steps)])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager(dynamic):
    torch.compiler.reset()
    compiled = torch.compile(_created, backend="batch_invariant", dynamic=dynamic)
    for x in (X, torch.randn(2, 1000)):
        with bi_compile.eager():
            want = _created(x)
        assert_same_bits(compiled(x), want)


def test_control_stock_graphs_and_stock_eager_do_not_agree():
    torch.compiler.reset()
    assert not torch.equal(torch.compile(_created)(X), _created(X))


def test_ends_are_exact_and_middles_are_rounded_once():
    with bi_compile.eager():
        x = torch.linspace(0.1, 0.7, 1001)
        y = torch.arange(0.1, 30, 0.07)
    assert (x[0], x[-1]) == (torch.tensor(0.1), torch.tensor(0.7))
    assert_same_bits(x, torch.linspace(0.1, 0.7, 1001, dtype=torch.float64).float())
    assert_same_bits(y, torch.tensor([0.1 + 0.07 * i for i in range(len(y))]))


@pytest.mark.parametrize("b", [True, False])
@pytest.mark.parametrize("a", [True, False])
def test_known_booleans_are_compared(a, b):
    """As masks that a model makes itself and negates: the host's ranges of values stopped at them."""
    torch.compiler.reset()

    def compare(x):
        a_mask, b_mask = torch.full((4,), a), torch.full((4,), b)
        known = a_mask.ne(b_mask), a_mask == b_mask
        return [torch.where(mask, x, 0.0) for mask in (*known, a_mask.ne(x > 0), (x > 0) == b_mask)]

    x = torch.randn(3, 4)
    for got, want in zip(torch.compile(compare, backend="batch_invariant")(x), compare(x), strict=True):
        assert_same_bits(got, want)
