"""`bisect` names the planted op and its line, is silent where nothing varies, tells what it cannot know."""

import contextlib
import inspect

import pytest
import torch

import bi_compile
from bi_compile.testing import BatchVarianceError, VacuousCheckError, assert_batch_invariant, bisect
from tests.bits import order_sensitive

FEATURES = 37
SIZES = (2, 3, 7)


class ByRow(torch.nn.Module):
    """A linear layer whose products have one order: one multiplication and a sum over a chain of adds."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(order_sensitive(inputs, outputs))

    def forward(self, x):
        total = torch.zeros_like(x[..., :1])
        for column in range(3):
            total = total + x[..., column : column + 1] * self.weight[column]
        return total


class Planted(torch.nn.Module):
    """Two invariant layers around one defect."""

    def __init__(self, defect) -> None:
        super().__init__()
        self.first, self.second = ByRow(FEATURES, 11), ByRow(11, 5)
        self.defect = defect

    def forward(self, x):
        hidden = self.first(x)
        hidden = self.defect(hidden)
        return self.second(hidden)


def mean_of_all(x):
    return x - x.mean(0)


def size_of_batch(x):
    return x * (1 + 2**-20 * (len(x) > 2))


def zero_times_a_neighbour(x):
    return x + 0 * x.sum((0, 1))


def softmax_over_samples(x):
    return torch.softmax(x, 0)


DEFECTS = {
    mean_of_all: "aten.mean.dim",
    size_of_batch: "aten.mul.Tensor",
    zero_times_a_neighbour: "aten.sum.dim_IntList",
    softmax_over_samples: "aten._softmax.default",
}


@pytest.fixture
def samples():
    return order_sensitive(8, FEATURES)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda f: f.__name__)
def test_a_planted_op_is_named_with_its_line(defect, samples):
    found = bisect(Planted(defect).eval(), samples, sizes=SIZES)

    assert found is not None
    assert found.op == DEFECTS[defect]
    code, line = inspect.getsourcelines(defect)
    assert found.where == f"{__file__}:{line + 1}, in {defect.__name__}:  {code[1].strip()}"
    assert found.module == "Planted"
    assert repr(found) == f"<FirstDifference: {found.op}, {found.where}>"
    story = str(found)
    assert story.startswith(f"{found.op} is the first op whose bits change with the batch\n")
    assert found.where in story
    assert f"sample {found.sample} at position {found.position} of a batch of {len(found.members)}" in story


@pytest.mark.parametrize("shape", [(8, FEATURES), (8, 3, FEATURES)])
def test_an_invariant_model_has_no_first_difference(shape):
    model = Planted(torch.nn.ReLU()).eval()
    samples = order_sensitive(*shape)
    assert_batch_invariant(model, samples)
    assert bisect(model, samples) is None


def test_what_differs_and_does_not_reach_the_output_is_not_named(samples):
    def fn(x):
        numbers = torch.arange(len(x))  # differs for every position but the first
        noise = x.mean(0)  # reaches the output below, times nothing
        x = x[numbers] + torch.zeros_like(noise)
        return x * x.amax(0)

    found = bisect(fn, samples, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.amax.default"
    assert found.where is not None
    assert found.where.endswith("in fn:  return x * x.amax(0)")


def test_both_orders_of_batch_and_time_are_followed(samples):
    """[time, batch, features] flattened: a sample's rows are every eighth, not a block."""
    model = ByRow(FEATURES, 5)

    def fn(x):
        y = model(x.flatten(0, 1)).exp2().unflatten(0, x.shape[:2])
        return y if len(x) < 0 else y + y.sum(1, keepdim=True)

    x = order_sensitive(3, 8, FEATURES)
    found = bisect(fn, x, batch_dims=1, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.sum.dim_IntList"
    assert bisect(lambda x: model(x.flatten(0, 1)).unflatten(0, x.shape[:2]), x, batch_dims=1) is None


def test_the_first_element_and_its_distance():
    bump = torch.tensor([0.0, 0.0, 2.0**-22, 2.0**-23])

    def off(x):
        return torch.add(x, bump, alpha=float(len(x) > 1)) * 2

    found = bisect(off, torch.ones(4, 4), sizes=(2,))
    assert found is not None
    assert found.op == "aten.add.Tensor"
    assert found.element == (0, 2)
    assert found.ulps == 2
    line = (
        "first difference at [0, 2]: alone 1, in the batch 1.00000024 (2 ulps apart); 2 of 4 elements differ"
    )
    assert line in found.details


def test_the_neighbours_that_matter_are_named(samples):
    def reads_the_one_below(x):
        return x + x.roll(1, 0) * 2.0**-10

    found = bisect(reads_the_one_below, samples, sizes=(4,), neighbours=())
    assert found is not None
    assert found.op == "aten.roll.default"
    assert found.neighbours == ((found.position - 1) % 4,)
    assert f"(sample {samples_at(found)})" in str(found)

    by_size = bisect(size_of_batch, samples, sizes=(4,))
    assert by_size is not None
    assert by_size.neighbours == ()
    assert "4 copies of the sample differ too" in str(by_size)


def samples_at(found):
    return found.members[found.neighbours[0]]


def test_hostile_neighbours_are_told(samples):
    found = bisect(
        zero_times_a_neighbour, samples.abs() * 0 + torch.arange(8.0)[:, None], sizes=(2,), trials=0
    )
    assert found is not None
    assert "hostile neighbours: their floating-point inputs are all nan" in str(found)


def test_an_op_changed_in_place_is_named(samples):
    def fn(x):
        y = x * 2
        y[:, 1:].add_(x.sum())
        return y

    found = bisect(fn, samples, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.sum.default"

    def writes(x):
        y = x * 2
        y[:, 1:].mul_(1 + 2**-20 * (len(x) > 1))
        return y * 3

    found = bisect(writes, samples, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.mul_.Tensor"
    assert found.where is not None
    assert "y[:, 1:].mul_(" in found.where


def test_other_ops_in_the_batch_are_told(samples):
    def fn(x):
        y = x * 2
        if len(x) > 2:
            return (y + 1) * 3
        return (y - 1).relu() * 3

    found = bisect(fn, samples, sizes=(3,))
    assert found is not None
    assert found.what == "the batch and the sample alone run different ops after 1 alike"
    assert found.op == "aten.add.Tensor"
    assert "3 ops in the batch, 4 alone" in found.details
    assert any(line.startswith("in the batch then aten.add.Tensor on f32[3, 37]") for line in found.details)
    assert any(
        line.startswith("alone then aten.sub.Tensor on f32[1, 37]") and "return (y - 1).relu() * 3" in line
        for line in found.details
    )


def test_more_ops_of_a_kind_in_the_batch_are_told(samples):
    def fn(x):
        carried = x[:1] * 1
        rows = []
        for row in x:
            carried = carried * 0.5 + row
            rows.append(carried)
        return torch.cat(rows)

    found = bisect(fn, samples, sizes=(2,))
    assert found is not None
    assert "different ops" in found.what
    assert any("aten.mul.Tensor" in line for line in found.details)


def test_an_op_that_cannot_be_matched_is_listed(samples):
    def packs(x):
        kept = x[x > 0]
        return x + kept.sum() * 2.0**-10

    found = bisect(packs, samples, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.sum.default"
    assert found.what == "aten.sum.default is the first op seen to change with the batch"
    assert any("aten.index.Tensor" in line and "not compared" in line for line in found.details)


def test_ops_on_packed_rows_are_listed_before_the_one_that_unpacks_them(samples):
    def packed(x):
        chosen = x[:, 0] > -2000
        y = torch.zeros_like(x)
        y[chosen] = x[chosen] * (1 + 2**-20 * (len(x) > 1))
        return y

    found = bisect(packed, samples, sizes=(2,), neighbours=())
    assert found is not None
    assert found.op == "aten.mul.Tensor", "all rows are chosen, so the packed shape still tells"

    def some(x):
        chosen = x > 0
        y = torch.zeros_like(x)
        y[chosen] = x[chosen] * (1 + 2**-20 * (len(x) > 1))
        return y

    found = bisect(some, samples, sizes=(2,), neighbours=())
    assert found is not None
    assert found.op == "aten.index_put_.default"
    assert "seen to change" in found.what
    assert [line.split(": ")[1].split(",")[0] for line in found.details if "not compared" in line] == [
        "aten.index.Tensor",
        "aten.mul.Tensor",
    ]


def test_a_difference_outside_torch_names_no_op(samples):
    def by_numpy(x):
        return torch.from_numpy(x.numpy() * (1 + 2**-20 * (len(x) > 1))).to(x.dtype)

    found = bisect(by_numpy, samples.double(), sizes=SIZES)
    assert found is not None
    assert found.op is None
    assert "no op can be named" in found.what


def test_stock_eager_is_named_and_our_ops_are_silent():
    """The control of the whole kit: what stock varies, bisect names, and our canonical ops pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(301, 19), torch.nn.Tanh()).eval().requires_grad_(False)
    samples = order_sensitive(8, 301)
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(model, samples, sizes=SIZES)

    found = bisect(model, samples, sizes=SIZES)
    assert found is not None
    assert found.op == "aten.addmm.default"
    assert found.module == "0 (Linear)"
    assert "f32[19], f32[1, 301], f32[301, 19]" in str(found)
    assert bisect(model, samples, sizes=SIZES, under=bi_compile.eager) is None


def test_what_torch_compile_was_given_is_run_without_it(samples):
    for compiled in (
        torch.compile(Planted(mean_of_all).eval(), backend="batch_invariant"),
        torch.compile(lambda x: mean_of_all(x), backend="inductor"),
    ):
        found = bisect(compiled, samples, sizes=(2,))
        assert found is not None
        assert found.op == "aten.mean.dim"
        assert "these are not the compiled ops" in str(found)


@pytest.mark.parametrize("backend", ["inductor", "batch_invariant"])
def test_a_compiled_part_is_run_op_by_op_too(samples, backend):
    part = torch.compile(Planted(mean_of_all).eval(), backend=backend)
    found = bisect(lambda x: part(x) * 2, samples, sizes=(2,))
    assert found is not None
    assert found.op is not None
    assert found.op.split(".")[:2] in (["aten", "mean"], ["bi_compile", "mean"])
    assert found.where is not None
    assert found.where.endswith("in mean_of_all:  return x - x.mean(0)")


def test_our_ops_are_named_under_our_eager_mode(samples):
    with torch.no_grad():
        found = bisect(lambda x: x - x.mean(0), samples, sizes=(2,), under=bi_compile.eager)
    assert found is not None
    assert found.op is not None
    assert found.op.startswith("bi_compile.")


def test_the_context_is_entered_for_every_run(samples):
    entered = []

    @contextlib.contextmanager
    def under():
        entered.append(1)
        yield

    assert bisect(lambda x: x * 2, samples, sizes=(2,), trials=1, neighbours=(), under=under) is None
    assert len(entered) == 1 + 2 + 1 + 1  # sample 0, both probes, the batch, the other sample


def test_vacuous_calls_are_refused(samples):
    with pytest.raises(VacuousCheckError, match="nothing can share its batch"):
        bisect(mean_of_all, samples[:1])
    with pytest.raises(VacuousCheckError, match="has no dimension that grows"):
        bisect(lambda x: x.mean(), samples)
    with pytest.raises(VacuousCheckError, match="no batch size above 1"):
        bisect(mean_of_all, samples, sizes=(1,))


def test_gradients_do_not_disturb_it(samples):
    model = Planted(mean_of_all)
    assert next(model.parameters()).requires_grad
    found = bisect(model, samples, sizes=(2,))
    assert found is not None
    assert found.op == "aten.mean.dim"


def varies_as_a_whole(graph, inputs):
    """A backend whose graphs differ with the batch and whose ops, seen one by one, do not."""
    return lambda *symbols_and_x: (symbols_and_x[-1] * (1 + 2**-20 * (len(symbols_and_x[-1]) > 2)),)


def test_a_compiled_graph_that_differs_as_a_whole_is_told(samples):
    compiled = torch.compile(lambda x: x * 1.0, backend=varies_as_a_whole, dynamic=True)
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(compiled, samples, sizes=SIZES)
    for fn, under in (
        (compiled, None),
        (compiled, bi_compile.eager),
        (lambda x: {"part": compiled(x)}, None),
    ):
        found = bisect(fn, samples, sizes=SIZES, under=under)
        assert found is not None
        assert found.op is None
        assert found.element is not None
        assert found.ulps is not None
        assert "output" in found.what
        assert "no op can be named" in found.what
        assert any("ulps apart" in line for line in found.details)
        story = str(found)
        assert f"sample {found.sample} at position {found.position} of a batch of 3" in story
        assert "the size matters, not the neighbours: 3 copies of the sample differ too" in story
        assert "the compiled graph as a whole does" in story


def test_a_compiled_graph_that_reads_a_neighbour_names_it(samples):
    def reads(graph, inputs):
        return lambda *symbols_and_x: (symbols_and_x[-1] + 0 * symbols_and_x[-1].sum(),)

    compiled = torch.compile(lambda x: x * 1.0, backend=reads, dynamic=True)
    found = bisect(compiled, samples * 0 + torch.arange(8.0)[:, None], sizes=(2,), trials=0)
    assert found is not None
    assert "the neighbours matter: nan at position" in str(found)
    assert bisect(torch.compile(lambda x: x * 1.0, backend="eager"), samples, sizes=(2,)) is None
