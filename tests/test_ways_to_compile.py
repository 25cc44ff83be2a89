"""However a user compiles and calls a model, its bits are those of eager mode and no batch shows in them."""

import contextlib
import copy
import functools
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from tests.bits import assert_same_bits, order_sensitive

X = order_sensitive(9, 300)
MODEL = nn.Sequential(nn.Linear(300, 32), nn.GELU(), nn.Linear(32, 8), nn.Softmax(-1)).eval()
MODEL.requires_grad_(False)
ours = functools.partial(torch.compile, backend="batch_invariant")


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=32):  # a layout of its own is a graph of its own
        yield


def eager(fn, *args):
    with torch.no_grad(), bi_compile.eager():
        return fn(*args)


def check(compiled, fn, *inputs):
    """Bits of eager mode, whole and in parts."""
    inputs = inputs or (X,)
    want = eager(fn, *(i.clone() for i in inputs))
    for start, count in ((0, len(want)), (3, 1), (2, 3)):
        part = [i[start : start + count].clone() for i in inputs]
        assert_same_bits(compiled(*part), want[start : start + count], f"{count} from {start}")


def in_no_grad(x):
    with torch.no_grad():
        y = MODEL(x)
    return y * 2


def in_autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return MODEL(x)


def scaled(scale, x):
    return MODEL(x) * scale


def by_vmap(x):
    return torch.vmap(lambda row: (row * row).sum())(x)


def on_integers(i):
    return (i.sum(-1) + (i > 3).sum(-1)).float() * 0.1


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 24)
        self.head = nn.Linear(24, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).mean(1))


class WithMethod:
    @torch.compile(backend="batch_invariant")
    def run(self, x):
        return MODEL(x) * 2


def exported():
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(MODEL, (X,), dynamic_shapes=({0: batch},)).module()


def with_compile_called():
    model = copy.deepcopy(MODEL)
    model.compile(backend="batch_invariant")
    return model


def with_a_submodule_compiled():
    model = copy.deepcopy(MODEL)
    model[0] = ours(model[0])
    return lambda x: eager(model[1:], model[0](x))


def copied():
    compiled = ours(copy.deepcopy(MODEL))
    compiled(X)
    return copy.deepcopy(compiled)


def pickled():
    file = io.BytesIO()
    torch.save(ours(copy.deepcopy(MODEL)), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "function": lambda: (ours(lambda x: MODEL(x) * 2), lambda x: MODEL(x) * 2),
    "method": lambda: (WithMethod().run, lambda x: MODEL(x) * 2),
    "module.compile": lambda: (with_compile_called(), MODEL),
    "submodule": lambda: (with_a_submodule_compiled(), MODEL),
    "nested": lambda: (ours(lambda x: ours(MODEL)(x) * 2), lambda x: MODEL(x) * 2),
    "max-autotune": lambda: (ours(MODEL, mode="max-autotune"), MODEL),
    "reduce-overhead": lambda: (ours(MODEL, mode="reduce-overhead"), MODEL),
    "freezing": lambda: (ours(copy.deepcopy(MODEL), options={"freezing": True}), MODEL),
    "fullgraph": lambda: (ours(MODEL, fullgraph=True), MODEL),
    "exported": lambda: (ours(exported()), MODEL),
    "no_grad inside": lambda: (ours(in_no_grad), in_no_grad),
    "autocast inside": lambda: (ours(in_autocast), in_autocast),
    "vmap": lambda: (ours(by_vmap), by_vmap),
    "partial": lambda: (ours(functools.partial(scaled, 2.0)), functools.partial(scaled, 2.0)),
    "deepcopy": lambda: (copied(), MODEL),
    "pickle": lambda: (pickled(), MODEL),
}


@pytest.mark.parametrize("way", WAYS)
def test_way(way):
    compiled, fn = WAYS[way]()
    check(compiled, fn)


def test_tied_weights_and_integers():
    model = Tied().eval().requires_grad_(False)
    tokens = torch.randint(0, 11, (9, 5))
    check(ours(model), model, tokens)
    check(ours(on_integers), on_integers, tokens)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_grad_modes(mode):
    model = copy.deepcopy(MODEL).requires_grad_()
    with mode():
        out = ours(model)(X)
    assert_same_bits(out.detach().clone(), eager(MODEL, X))


def test_autocast_outside():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(ours(MODEL), MODEL)


def test_structured_inputs_and_outputs():
    def fn(xs, *, scale, bias=None):
        first, second = (MODEL(x) for x in xs)
        return {"a": first * scale + bias, "b": (second, [xs[0][:, :3], None, 3])}

    for scale in (1.5, 2, 0.25):
        arguments = {"scale": scale, "bias": torch.ones(8)}
        with torch.no_grad(), bi_compile.eager():
            want = fn([X, X[:3]], **arguments)
        got = ours(fn)([X, X[:3]], **arguments)
        assert_same_bits(got["a"], want["a"])
        assert_same_bits(got["b"][0], want["b"][0])
        assert_same_bits(got["b"][1][0], X[:, :3])
        assert got["b"][1][1:] == [None, 3]


def test_inputs_and_buffers_changed_in_place():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            x.add_(1)
            x[:, 0] = 0
            self.calls.add_(1)
            return MODEL(x) * self.calls

    model, x, y = Counts(), X.clone(), X.clone()
    compiled = ours(model)
    first, second = compiled(x), compiled(X.clone())
    want = eager(Counts(), y)
    assert_same_bits(x, y, "the input")
    assert_same_bits(first, want)
    assert_same_bits(second, want * 2)
    assert model.calls == 2


def test_weights_changed_after_compiling_are_seen():
    model = copy.deepcopy(MODEL)
    compiled = ours(model)
    compiled(X)
    model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    assert_same_bits(compiled(X), eager(model, X), "loaded")
    model[0].weight.mul_(2)
    assert_same_bits(compiled(X), eager(model, X), "in place")
    model[0].weight = nn.Parameter(torch.randn(32, 300), requires_grad=False)
    assert_same_bits(compiled(X), eager(model, X), "replaced")
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())


def test_views_that_overlap_or_lie_strided():
    compiled = ours(MODEL)
    line = order_sensitive(9 * 600)
    views = {
        "overlapping": line.as_strided((9, 300), (1, 1)),
        "expanded": line[:300].expand(9, 300),
        "transposed": line[:2700].view(300, 9).t(),
        "every other": line.view(9, 600)[:, ::2],
        "offset": line[3 : 3 + 2700].view(9, 300),
    }
    for name, view in views.items():
        want = eager(MODEL, view.contiguous())
        assert_same_bits(compiled(view), want, name)
        assert_same_bits(compiled(view[4:5]), want[4:5], name)


def test_no_samples_in_any_order():
    compiled = ours(MODEL)
    assert [tuple(compiled(X[:n]).shape) for n in (0, 9, 1, 0)] == [(0, 8), (9, 8), (1, 8), (0, 8)]


def test_reductions_of_no_elements():
    def fn(x):
        return (
            x.sum(-1), x.mean(-1), x.prod(-1), x @ torch.ones(0, 3),
            F.linear(x, torch.ones(4, 0), torch.arange(4.0)), torch.softmax(x, -1),
            F.scaled_dot_product_attention(torch.ones(3, 2, 4, 8), *[x.new_ones(3, 2, 0, 8)] * 2),
        )  # fmt: skip

    empty = torch.ones(5, 0)
    for got, want, stock in zip(ours(fn)(empty), eager(fn, empty), fn(empty), strict=True):
        assert_same_bits(got, want)
        assert torch.equal(got.nan_to_num(7), stock.nan_to_num(7))


def test_threads_that_compile_and_call_at_the_same_time():
    compiled, want, wrong = ours(MODEL), eager(MODEL, X), []

    def run():
        try:
            for count in (1, 2, 5, 9):
                assert_same_bits(compiled(X[:count].clone()), want[:count])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
