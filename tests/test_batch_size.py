"""A model whose Python asks for the size of the batch: told where the answer decides anything."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.errors import BatchSizeWarning
from bi_compile.report import collect
from tests.bits import assert_same_bits, same_bits

X = torch.randn(6, 8)
TABLE = {size: float(size) for size in range(40)}


pytestmark = pytest.mark.usefixtures("nothing_told_yet")


def branch(x):
    if x.shape[0] > 4:
        return x * 2
    return x * 3


def told(compiled, *batches):
    """The warnings about the size of the batch that calls bring."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for batch in batches:
            compiled(*batch) if isinstance(batch, tuple) else compiled(batch)
    return [w for w in caught if w.category is BatchSizeWarning]


def asked(model, *inputs):
    inputs = inputs or (X.clone(),)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", BatchSizeWarning)
        return [question.expression for question in bi_compile.explain(model)(*inputs).questions]


def test_a_branch_is_told_at_its_first_compilation_with_its_line_and_its_question():
    compiled = torch.compile(branch, backend="batch_invariant")
    (warning,) = told(compiled, X.clone())
    line = branch.__code__.co_firstlineno + 1
    assert (warning.filename, warning.lineno) == (__file__, line)
    assert str(warning.message).splitlines()[:2] == [
        "the model's Python asks whether B > 4, and B is the size of the batch: "
        "a sample keeps its bits among batches that answer B > 4 alike",
        f"  {__file__}:{line}, in branch:  if x.shape[0] > 4:",
    ]


def test_control_a_sample_has_other_bits_where_the_answer_is_another():
    compiled = torch.compile(branch, backend="batch_invariant")
    with pytest.warns(BatchSizeWarning):
        five, four, two = (compiled(X[:size].clone()) for size in (5, 4, 2))
    assert not same_bits(five[:4], four)
    assert_same_bits(four[:2], two)


def test_a_line_is_told_once_however_often_it_is_compiled():
    compiled = torch.compile(branch, backend="batch_invariant")
    with collect() as report:
        assert len(told(compiled, X.clone(), X[:3].clone(), X[:5].clone())) == 1
    assert report.compilations == 2
    assert [question.expression for question in report.questions] == ["B > 4"]


def test_a_first_batch_of_one_sample_asks_nothing_and_the_second_does():
    compiled = torch.compile(branch, backend="batch_invariant")
    assert not told(compiled, X[:1].clone())
    assert len(told(compiled, X[:5].clone())) == 1


class Deep(nn.Module):
    """Asks in a module below the one that is compiled."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), Asking())

    def forward(self, x):
        return self.inner(x) + 1


class Asking(nn.Module):
    def forward(self, x):
        return x * 2 if len(x) > 4 else x  # the line to be named


def test_the_line_is_that_of_the_model_wherever_it_stands():
    (warning,) = told(torch.compile(Deep(), backend="batch_invariant"), X.clone())
    assert "in forward:  return x * 2 if len(x) > 4 else x  # the line to be named" in str(warning.message)


def chosen_by_number_of_tokens(x):
    return x * 2 if x.numel() > 40 else x + 0


def remainder(x):
    rest = x.shape[0] - 6
    return x * 2 if rest else x * 3


def counted(x):
    n = 1
    while n < x.shape[0] - 2:
        n *= 2
    return x * n


def warned_about_and_cut(x):
    if x.shape[0] > 100:
        x = x[:100]
    return x * 2


def caught_here(x):
    try:
        if x.shape[0] > 4:
            raise ValueError
    except ValueError:
        return x * 2
    return x * 3


RELATIONS = {
    "one": (lambda x: x * 2 if x.shape[0] == 1 else x * 3, ["B == 1"]),
    "at least two": (lambda x: x * 2 if x.shape[0] >= 2 else x * 3, ["B >= 2"]),
    "an opposite": (lambda x: x * 2 if not x.size(0) > 4 else x * 3, ["B > 4"]),
    "one of some": (lambda x: x * 2 if x.shape[0] in (4, 6) else x * 3, ["B == 4 or B == 6"]),
    "any size": (lambda x: x * 2 if any(size > 7 for size in x.shape) else x * 3, ["B > 7"]),
    # Before torch 2.13 Dynamo asks of each size whether it is another.
    "a whole shape": (
        lambda x: x * 2 if x.shape == (6, 8) else x * 3,
        ["B != 6" if torch.__version__ < (2, 13) else "B == 6"],
    ),
    "a bool": (lambda x: x * 2 if bool(x.shape[0] > 4) else x * 3, ["B > 4"]),
    "and": (lambda x: x * 2 if x.shape[1] > 4 and x.shape[0] > 4 else x * 3, ["B > 4"]),
    "a value of two": (lambda x: x * ((x.shape[0] > 4 and 2) or 3), ["B > 4"]),
    "elements": (chosen_by_number_of_tokens, ["8*B > 40"]),
    "a remainder": (remainder, ["B - 6 != 0"]),
    "a loop that counts": (counted, ["B - 2 > 1", "B - 2 > 2", "B - 2 > 4"]),
    "a part of the batch": (warned_about_and_cut, ["B > 100"]),
    "an error that is caught": (caught_here, ["B > 4"]),
    "nothing else": (lambda x: x * 2 if x.shape[0] > 8 else x, ["B > 8"]),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_questions_that_decide_what_is_computed(name):
    model, expected = RELATIONS[name]
    assert asked(model) == expected


IN_THE_GRAPH = {
    "a product": lambda x: x * (x.shape[0] > 4),
    "a number": lambda x: x * int(x.shape[0] > 4),
    "a sum": lambda x: x * sum([x.shape[0] > 4, 1]),
    "a choice": lambda x: torch.where(torch.tensor(x.shape[0] > 4), x, -x),
    "a filling": lambda x: x.masked_fill(x > 0, x.shape[0] > 4),
}


@pytest.mark.parametrize("name", IN_THE_GRAPH)
def test_questions_whose_answers_are_numbers_of_the_graph(name):
    (warning,) = told(bi_compile.explain(IN_THE_GRAPH[name]), X.clone())
    assert "asks whether B > 4, and B is the size" in str(warning.message)
    assert (warning.filename, warning.lineno) == (__file__, IN_THE_GRAPH[name].__code__.co_firstlineno)


def doubled_by_each(x):
    for _ in range(x.shape[0]):
        x = x * 2
    return x


def shares_of_a_number_before(x):
    n = len(x)
    return torch.stack([x[i] / n for i in range(n)])


def shares_of_a_fraction_before(x):
    share = 1 / len(x)
    return torch.stack([row * share for row in x])


NUMBERS = {
    "rounds": (doubled_by_each, "B"),
    "places": (lambda x: x + torch.tensor([float(i) for i in range(x.shape[0])])[:, None], "B"),
    "a key": (lambda x: x * TABLE[x.shape[0]], "B"),
    "an index": (lambda x: x * [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0][x.shape[0]], "B"),
    "a function of Python": (lambda x: x / math.log(x.shape[0] + 1), "B + 1"),
    "a function of NumPy": (lambda x: x / np.sqrt(x.shape[0]), "B"),
    "a method": (lambda x: x * x.shape[0].bit_length(), "B"),
    "a dim": (lambda x: x.sum(x.shape[0] - 5), "B - 5"),
    "an option of an op": (lambda x: F.layer_norm(x, (8,), eps=x.shape[0] * 0.5), "0.5*ToFloat(B)"),
    "a list": (lambda x: x * len([1] * x.shape[0]), "B"),
    "a line": (lambda x: x * torch.linspace(0, 1, x.shape[0]).mean(), "B"),
    # A loop over the samples finds their number to be the one at hand.
    "in a loop": (lambda x: torch.stack([row / len(x) for row in x]), "B"),
    "in a loop over rows": (lambda x: torch.cat([row[None] * x.shape[0] for row in x.unbind(0)]), "B"),
    "in a loop, a choice": (lambda x: torch.stack([row * 2 if len(x) > 3 else row for row in x]), "B"),
    "before a loop": (shares_of_a_number_before, "B"),
    "before a loop, a fraction": (shares_of_a_fraction_before, "IntTrueDiv(1, B)"),
    "behind a loop": (lambda x: torch.stack([row * 2 for row in x]) / len(x), "B"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_taken_out_of_the_hosts_sight(name):
    model, expected = NUMBERS[name]
    with torch.no_grad(), pytest.warns(BatchSizeWarning, match="as a plain number, and B is the size"):
        report = bi_compile.explain(model)(X.clone())
    assert [(q.expression, q.relation) for q in report.questions] == [(expected, False)]
    assert not report.promised


@pytest.mark.parametrize("divide", [lambda x: x / x.shape[0], lambda x: x * (1.0 / len(x))])
def test_a_division_is_refused_where_the_batch_is_symbolic_and_explain_always_makes_it_so(divide):
    with pytest.raises(Exception, match=r"BatchMixingError: aten\.\w+\.Tensor mixes the samples of a batch"):
        torch.compile(divide, backend="batch_invariant")(X.clone())
    torch.compiler.reset()
    static = torch.compile(divide, backend="batch_invariant", dynamic=False)
    whole, rows = static(X.clone()), static(X[:3].clone())
    assert not same_bits(whole[:3], rows), "in a graph of one size the number is like any other"
    assert bi_compile.explain(static)(X.clone()).refused
    assert bi_compile.explain(static)(X[:1].clone()).promised, "one sample shares its batch with none"


def raising(x):
    if x.shape[0] > 100:
        raise ValueError(f"{x.shape[0]} samples")
    return x * 2


def raising_else(x):
    if x.shape[0] <= 100:
        y = x * 2
    else:
        message = "too many"
        print(message)
        raise ValueError(message)
    return y


def raising_under_conditions(x, strict=None):
    if strict is None and (x.shape[0] > 100 or x.shape[0] % 2):
        raise ValueError("no")
    return x * 2


def raising_within(x):
    with torch.autocast("cpu", enabled=False):
        if x.shape[0] > 100 and x.shape[1] == 8:
            raise ValueError("no")
        return x * 2


def helped(x):
    raising(x)
    return x * 2


def asserting(x):
    assert x.shape[0] < 100, "no"
    return x * 2


def checking(x):
    torch._check(x.shape[0] < 100)
    return x * 2


@pytest.mark.parametrize(
    "model", [raising, raising_else, raising_under_conditions, raising_within, helped, asserting, checking]
)
def test_questions_that_only_guard_an_error_are_not_told(model):
    assert asked(model) == []


ATTENDED = torch.randn(6, 4, 5, 8)

NOT_TOLD = {
    "views": lambda x: x.view(x.shape[0], 2, 4).reshape(x.shape[0] * 2, 4).view(x.shape[0], -1) + 1,
    "expands": lambda x: x + torch.arange(8.0).expand(x.shape[0], 8) + torch.zeros(x.shape[0], 1),
    "places": lambda x: x[torch.arange(x.shape[0])] + x.new_ones(len(x), 8),
    "rows in a loop": lambda x: torch.stack([row * 2 for row in x]),
    "samples in a loop": lambda x: torch.stack([x[i] * 2 for i in range(x.shape[0])]),
    "samples, and a list of features": lambda x: (
        torch.stack([x.T[[1, 3]].T[i] for i in range(len(x))]) + x[:, :2]
    ),
    "samples kept apart": lambda x: torch.cat([x[i : i + 1] * 2 for i in range(x.shape[0])]),
    "samples and tokens": lambda x: torch.stack([x[i, :4].softmax(0) for i in range(len(x))]),
    "samples but the first": lambda x: torch.stack([x[0], *(x[i + 1] * 2 for i in range(x.shape[0] - 1))]),
    "samples selected": lambda x: torch.stack([x.select(0, i) * 2 for i in range(x.shape[0])]),
    "rows in a tuple": lambda x: torch.stack(x.unbind(0)) + 1,
    "rows in two loops": lambda x: torch.stack([r * 2 for r in torch.stack([r * 2 for r in x])]),
    "rows in a loop, viewed": lambda x: (y := torch.stack([r * 2 for r in x])).view(y.shape[0], 2, 4),
    "never": lambda x: x * 2 if x.shape[0] < 1 else x * 3,
    "equal by definition": lambda x: x * 2 if x.numel() == 8 * x.shape[0] else x * 3,
    "its half": lambda x: x * 2 if x.numel() // x.shape[0] > 4 else x * 3,
    "other axes": lambda x: x * 2 if x.shape[1] > 4 and x.stride(0) > 4 and x.dim() == 2 else x * 3,
    "none": lambda x: F.layer_norm(x, (8,)).softmax(-1),
}


@pytest.mark.parametrize("name", NOT_TOLD)
def test_sizes_that_choose_nothing_are_not_told(name):
    assert asked(NOT_TOLD[name]) == []


def test_sizes_of_other_axes_are_not_told_where_they_are_symbols_too():
    def model(x):
        return x * 2 if x.shape[1] > 4 and x.shape[-1] % 2 == 0 else x * 3

    compiled = torch.compile(model, backend="batch_invariant", dynamic=True)
    assert not told(compiled, torch.randn(6, 7, 8), torch.randn(5, 3, 8), torch.randn(5, 4, 7))
    assert not told(compiled, torch.randn(7, 7, 7)), "one symbol, and nobody knows for which of the sizes"


def test_sizes_of_two_inputs_of_one_batch_are_equal():
    def model(x, y):
        if x.shape[0] != y.shape[0]:
            return x
        return x + y

    compiled = torch.compile(model, backend="batch_invariant")
    assert not told(compiled, (X.clone(), X.clone()), (X[:3].clone(), X[:3].clone()))


def test_the_batch_is_where_the_mark_says():
    assert asked(branch, bi_compile.mark_batch(X.clone(), None)) == []
    assert asked(branch, bi_compile.mark_batch(X.clone(), 1)) == []
    across = bi_compile.mark_batch(X.clone(), 1)
    assert asked(lambda x: x * 2 if x.shape[1] > 4 else x * 3, across) == ["B > 4"]


def test_an_input_that_comes_later_says_which_batch_it_is():
    """The table is the first to be used, and no batch: most of the data is in x."""

    def model(table, x):
        table = table * 2 if table.shape[0] > 4 else table * 3
        return x + table.sum()

    assert asked(model, torch.randn(5), torch.randn(6, 300)) == []


def test_a_function_that_computes_nothing_for_these_samples():
    """Dynamo skips it before any backend is asked; explain has made the batch a symbol by then."""
    assert asked(lambda x: x if x.shape[0] > 4 else -x) == ["B > 4"]


def test_other_backends_are_left_alone():
    assert not told(torch.compile(branch, backend="eager", dynamic=True), X.clone())
