"""Products joined with what follows, on CUDA devices: what is, and that nothing else in the graph changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.source import LocalSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import bi_compile
from bi_compile.passes import epilogue
from bi_compile.passes.epilogue import join_products_and_epilogues
from bi_compile.pipeline import decompositions
from bi_compile.templates import contraction as _contraction  # noqa: F401  (defines the ops)
from tests.bits import assert_same_bits
from tests.templates.activations import ACTIVATIONS, OF_HALVES, WITH_ANOTHER

bi = torch.ops.bi_compile

X, W, V = torch.randn(3, 5, 8), torch.randn(8, 8), torch.randn(8)
LINEAR, PRODUCT, GROUPED, ALONE = "linear_epilogue", "product_epilogue", "grouped_mm_epilogue", "linear"
JOINED = {bi.linear_epilogue.default, bi.product_epilogue.default, bi.grouped_mm_epilogue.default}
JOINED_NAMES = {LINEAR, PRODUCT, GROUPED}
CHANGES_NOTHING = {"view", "reshape", "permute", "t", "full", "scalar_tensor"}


def joined(function, *inputs, device: str = "cuda", dtype: torch.dtype | None = None) -> list[str]:
    """The names of the ops in the graph after the pass, without those that change no number."""
    with FakeTensorMode():
        fakes = [torch.empty(x.shape, dtype=dtype or x.dtype, device=device) for x in inputs]
        graph = make_fx(function, decomposition_table=decompositions())(*fakes).graph
        join_products_and_epilogues(graph)
    graph.lint()
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert all("val" in node.meta for node in calls)
    for node in calls:
        if node.target in JOINED:
            assert_meta_is_what_the_op_returns(node)
    names = [getattr(node.target, "overloadpacket", node.target).__name__ for node in calls]
    return [name for name in names if name not in CHANGES_NOTHING]


def assert_meta_is_what_the_op_returns(node) -> None:
    arguments, options = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with node.meta["val"].fake_mode:
        found = node.target(*arguments, **options)
    assert (found.shape, found.dtype, found.stride()) == (
        node.meta["val"].shape, node.meta["val"].dtype, node.meta["val"].stride(),
    )  # fmt: skip


def linear(x, w, b=None):
    """Kept whole, as where Dynamo captures it."""
    return bi.linear(x, w, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, dtype):
    assert joined(lambda x, w, v: ACTIVATIONS[name](linear(x, w, v)), X, W, V, dtype=dtype) == [LINEAR]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WITH_ANOTHER)
def test_another_tensor(name, dtype):
    def of_an_input(x, w):
        return WITH_ANOTHER[name](linear(x, w), x)

    def of_a_product(x, w):
        return WITH_ANOTHER[name](linear(x, w), linear(x, w.t()))

    assert joined(of_an_input, X, W, dtype=dtype) == [LINEAR]
    assert joined(of_a_product, X, W, dtype=dtype) == [ALONE, LINEAR]


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x, w, v: F.relu(w @ w), [PRODUCT]),
        (lambda x, w, v: F.relu(torch.bmm(x, x.mT)), [PRODUCT]),
        (lambda x, w, v: F.relu(torch.baddbmm(v, x, w.expand(3, 8, 8), beta=2)), ["expand", PRODUCT]),
        # Rows with several dims around a matrix of them.
        (lambda x, w, v: F.gelu(torch.addmm(v, x.view(-1, 8), w).view(x.shape)), [PRODUCT]),
        (lambda x, w, v: x + torch.mm(x.view(-1, 8), w).view(x.shape), [PRODUCT]),
        # Its result has another dtype.
        (lambda x, w, v: linear(x.half(), w.half()).float(), ["convert_element_type"] * 2 + [LINEAR]),
        # Both users are ours.
        (lambda x, w, v: (linear(y := F.silu(linear(x, w)), w), linear(y, w)), [LINEAR, ALONE, ALONE]),
        (lambda x, w, v: linear(F.relu(linear(x, w)).view(15, 8), w), [LINEAR, ALONE]),
        (lambda x, w, v: linear(torch.select(F.relu(linear(x, w)), 1, 0), w), [LINEAR, "select", ALONE]),
        # One after the other.
        (lambda x, w, v: x + linear(F.relu(linear(x, w, v)), w), [LINEAR, LINEAR]),
        # What is read by nobody else is part of it, too: the gradient of relu.
        (lambda x, w, v: torch.where(x <= 0, 0, linear(x, w)), [LINEAR]),
    ],
)  # fmt: skip
def test_joined(function, ops):
    assert joined(function, X, W, V) == ops


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, v: (y := linear(x, w), F.relu(y)),  # the product is wanted, too
        lambda x, w, v: F.relu(linear(x, w)) * v,  # Inductor has a kernel for the product with v
        lambda x, w, v: F.relu(linear(x, w)).flip(1),  # likewise
        lambda x, w, v: linear(x, w) + x.flip(0),  # which would have to be stored
        lambda x, w, v: linear(x, w) + x + x.sin() * x.view(-1).sum(),
        lambda x, w, v: linear(w, w) + w.mT,  # which would be copied
        lambda x, w, v: F.relu(linear(x.double(), w.double())),  # fp64 has no epilogues
        lambda x, w, v: linear(x, w).round(),  # no step
        lambda x, w, v: linear(x, w) * (x > 0),  # nor is a product of two dtypes
        lambda x, w, v: F.threshold(linear(x, w), 1e-42, 0.0),  # a number that Triton has in fp64
        lambda x, w, v: F.relu(linear(x, w).mT),
        lambda x, w, v: F.relu(x),
    ],
)
def test_left_alone(function):
    assert not {LINEAR, PRODUCT} & set(joined(function, X, W, V))


def experts(x, w, offs):
    """Rows of x, sorted by their groups, and a weight for each of these."""
    return (
        torch._grouped_mm(x, w.mT, offs=offs) if x.dtype == torch.bfloat16 else bi.grouped_mm(x, w.mT, offs)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*ACTIVATIONS, *WITH_ANOTHER])
def test_grouped_products(name, dtype):
    """Written as models do whose experts have no gate, or a weight of its own for it."""

    def function(x, w, v, down, offs):
        y = experts(x, w, offs)
        y = ACTIVATIONS[name](y) if name in ACTIVATIONS else WITH_ANOTHER[name](y, experts(x, v, offs))
        return experts(y, down, offs)

    weights = torch.empty(4, 16, 8, dtype=dtype), torch.empty(4, 16, 8, dtype=dtype)
    inputs = torch.empty(7, 8, dtype=dtype), *weights, torch.empty(4, 8, 16, dtype=dtype), torch.ones(4).int()
    other = ["grouped_mm"] * (name in WITH_ANOTHER)
    assert joined(function, *inputs) == [*other, GROUPED, "grouped_mm"]


def test_what_of_a_grouped_product_is_left_alone():
    x, w, offs = torch.empty(7, 8), torch.empty(4, 8, 8), torch.ones(4).int()
    bias, scale, ids = torch.empty(4, 8), torch.empty(7, 1), torch.ones(7).long()

    def finished(finish):
        def function(x, w, offs, bias, scale, ids):
            y = bi.grouped_mm(x, w, offs)
            return finish(y, x, torch.ops.aten.index.Tensor(bias, [ids]), scale, ids)

        return joined(function, x, w, offs, bias, scale, ids)

    # Inductor gathers the bias of each row in the kernel that reads it.
    assert GROUPED not in finished(lambda y, x, bias, scale, ids: F.silu(y + bias))
    # Likewise with the weight of each row, and the order that rows had before.
    assert GROUPED not in finished(
        lambda y, x, bias, scale, ids: torch.ops.aten.index.Tensor(y * scale, [ids])
    )
    assert GROUPED not in finished(lambda y, x, bias, scale, ids: (y, y.relu()))
    assert GROUPED in finished(lambda y, x, bias, scale, ids: y.relu() + x)


def by_chunk(y):
    return y.chunk(2, dim=-1)


def by_split(y):
    return y.split([y.shape[-1] // 2] * 2, dim=y.dim() - 1)


def by_slices(y):
    half, dim = y.shape[-1] // 2, y.dim() - 1
    return y.narrow(dim, 0, half), torch.ops.aten.slice.Tensor(y, -1, half, 2**63 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cut", [by_chunk, by_split, by_slices])
@pytest.mark.parametrize("name", OF_HALVES)
def test_both_halves(name, cut, dtype):
    finish = OF_HALVES[name]
    up = torch.empty(12, 8), torch.empty(12), torch.empty(4, 12, 8)
    down = torch.empty(8, 6), torch.empty(4, 8, 6)

    def of_linear(x, w, b, down):
        return linear(finish(*cut(linear(x, w, b))), down)

    def of_a_matrix(x, w, down):
        return torch.mm(finish(*cut(torch.mm(x.view(15, 8), w.t()).view(3, 5, 12))).view(15, 6), down.t())

    def of_groups(x, w, down, offs):
        return experts(finish(*cut(experts(x.view(15, 8), w, offs))), down, offs)

    assert joined(of_linear, X, *up[:2], down[0], dtype=dtype) == [LINEAR, ALONE]
    assert joined(of_a_matrix, X, up[0], down[0], dtype=dtype) == [PRODUCT, "mm"]
    offs = torch.ones(4).int()
    half = [t.to(dtype) for t in (X, up[2], down[1])]
    assert joined(of_groups, *half, offs) == [GROUPED, "grouped_mm"]


def test_both_halves_and_another_tensor():
    x, w, y = torch.empty(5, 8), torch.empty(16, 8), torch.empty(5, 8)
    assert joined(lambda x, w, y: torch.mul(*by_chunk(linear(x, w))) + y, x, w, y) == [LINEAR]


@pytest.mark.parametrize(
    "function",
    [
        lambda y, x: F.silu(by_chunk(y)[0]),  # one half
        lambda y, x: (torch.mul(*by_chunk(y)), y),  # all of it is wanted, too
        lambda y, x: (torch.mul(*(cut := by_chunk(y))), cut[1]),
        lambda y, x: torch.mul(*by_slices(y)) + y.narrow(1, 0, 8),
        lambda y, x: torch.mul(*y.chunk(2, dim=0)),
        lambda y, x: y.narrow(1, 0, 8) * y.narrow(1, 4, 8),
        lambda y, x: torch.mul(*y.split([8, 8, 0], dim=1)[:2]),
        lambda y, x: torch.mul(*y.split(4, dim=1)[:2]),
        lambda y, x: y.view(-1, 8, 2).select(2, 0) * y.view(-1, 8, 2).select(2, 1),  # as gpt-oss cuts it
    ],
)
def test_what_of_halves_is_left_alone(function):
    x, w = torch.empty(6, 8), torch.empty(16, 8)
    assert not JOINED_NAMES & set(joined(lambda x, w: function(linear(x, w), x), x, w))


def test_parts_whose_ends_are_symbols_are_left_alone():
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbolic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    four = mode.from_tensor(torch.empty(4), source=LocalSource("four"), symbolic_context=symbolic)

    def parts(x, w, four):
        y, end = linear(x, w), four.shape[0]
        return y.narrow(1, 0, end) * y.narrow(1, end, end)

    with mode:
        x, w = (torch.empty(8, 8, device="cuda") for _ in range(2))
        graph = make_fx(parts)(x, w, four).graph
        assert any(
            isinstance(node.args[3], torch.fx.Node)
            for node in graph.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor)
        )
        assert not join_products_and_epilogues(graph)


def test_left_alone_on_the_cpu():
    assert LINEAR not in joined(lambda x, w: F.relu(linear(x, w)), X, W, device="cpu")


def test_left_alone_where_a_number_is_rounded_by_the_host():
    assert (
        joined(lambda x, w: torch.where(linear(x, w) > 0.1, 1.0, 0.0), X, W, dtype=torch.bfloat16)[0] == ALONE
    )
    assert joined(lambda x, w: linear(x, w) > 0.5, X, W) == [ALONE, "gt"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_joined_ops_are_the_ops_one_by_one(dtype):
    x, w, v = (t.to(dtype) for t in (X, W, V))
    relu = "t1 = le(p, 0.0); t2 = where(t1, 0.0, p)"
    assert_same_bits(bi.linear_epilogue(x, w, v, None, relu), bi.linear(x, w, v).relu())
    assert_same_bits(bi.product_epilogue(x[0], w, None, x[1], "t1 = add(p, o)"), bi.mm(x[0], w) + x[1])
    found = bi.product_epilogue(x, x.mT, x @ x.mT, None, relu, beta=0.5, alpha=2)
    assert_same_bits(found, bi.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2).relu())
    groups, ends = torch.stack([w, w.t()]), torch.tensor([2, 4])
    found = bi.grouped_mm_epilogue(x[0], groups, ends, x[1], "t1 = add(p, o)")
    assert_same_bits(found, bi.grouped_mm(x[0], groups, ends) + x[1])
    y = bi.linear(x, w, v)
    found = bi.linear_epilogue(x, w, v, y[..., 4:], "t1 = mul(p, q); t2 = add(t1, o)")
    assert_same_bits(found, y[..., :4] * y[..., 4:] + y[..., 4:])
    silu = "t1 = float32(p); t2 = neg(t1); t3 = exp(t2); t4 = add(t3, 1.0); t5 = div(t1, t4)"
    y = bi.linear(x, w, v).float()
    assert_same_bits(bi.linear_epilogue(x, w, v, None, silu), y / (bi.unary(-y, "exp") + 1))
    if dtype != torch.float64:
        torch.testing.assert_close(bi.linear_epilogue(x, w, v, None, silu), F.silu(y))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("p", "'p' is no step 1 of an epilogue"),
        ("t2 = neg(p)", "is no step 1"),
        ("t1 = neg(p, p)", "is no step 1"),
        ("t1 = sqrtt(p)", "is no step 1"),
        ("t1 = neg(p); t2 = add(t1, t3)", "t3"),
        ("t1 = float32(p); t2 = add(t1, p)", "step 2 of an epilogue, add, has arguments of dtypes"),
        ("t1 = where(p, p, p)", "step 1 of an epilogue, where"),
        ("; ".join(f"t{i} = neg(p)" for i in range(1, 66)), "at most 64 steps"),
    ],
)
def test_what_is_no_program(program, message):
    x, w = X.bfloat16(), W.bfloat16()
    with FakeTensorMode() as mode, pytest.raises(ValueError, match=message):
        bi.linear_epilogue(mode.from_tensor(x), mode.from_tensor(w), None, None, program)


def test_another_tensor_has_the_shape_and_dtype_of_the_product():
    with FakeTensorMode() as mode:
        x, w = mode.from_tensor(X), mode.from_tensor(W)
        for other in (None, x[:1], x[0], x.half()):
            with pytest.raises(RuntimeError):
                bi.linear_epilogue(x, w, None, other, "t1 = add(p, o)")
        with pytest.raises(RuntimeError):
            bi.linear_epilogue(x, w, None, x, "t1 = neg(p)")
        with pytest.raises(RuntimeError, match="other has another shape"):
            bi.linear_epilogue(x, w, None, x, "t1 = mul(p, q); t2 = add(t1, o)")
        with pytest.raises(RuntimeError, match=r"an even number of columns to cut in two, got \[3, 5, 7\]"):
            bi.linear_epilogue(x, w[:7], None, None, "t1 = mul(p, q)")


class Block(nn.Module):
    """Of a transformer, without attention: a gated and a plain perceptron, with sums around them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24, bias=False), nn.Linear(24, 8)
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 8)
        self.both, self.back = nn.Linear(8, 48, bias=False), nn.Linear(24, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        x = x + self.second(F.relu(self.first(self.norm(x))))
        gate, up = self.both(x).chunk(2, dim=-1)
        x = x + self.back(F.silu(gate) * up)
        return F.gelu(self.first(x), approximate="tanh")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_model_has_the_bits_of_one_without_joins(dtype, training, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = Block().to(dtype).requires_grad_(training)
    batches = [torch.randn(batch, 5, 8).to(dtype).requires_grad_(training) for batch in (2, 3, 7)]

    def results(run) -> list[torch.Tensor]:
        found = []
        for x in batches:
            y = run(x)
            found.append(y.detach())
            if training:
                x.grad = None
                model.zero_grad()
                y.float().square().sum().backward()
                found += [x.grad, *(p.grad for p in model.parameters())]
        return found

    def compiled(devices: tuple[str, ...]) -> tuple[list[torch.Tensor], str]:
        torch.compiler.reset()
        monkeypatch.setattr(epilogue, "_DEVICES", devices)
        dump = tmp_path / f"on {devices}"
        found = results(torch.compile(model, backend="batch_invariant", options={"dump": str(dump)}))
        return found, "".join(file.read_text() for file in dump.glob("000/*joined.py"))

    (joined_, graphs), (alone, none) = compiled(("cpu",)), compiled(())
    for found, expected in zip(joined_, alone, strict=True):
        assert_same_bits(found, expected)
    if not training:  # whose gradients eager mode adds in another order
        for found, expected in zip(joined_, results(bi_compile.eager()(model)), strict=True):
            assert_same_bits(found, expected)
    # In training: neither gates nor gelu, whose gradients need the argument, but two in the backward graph.
    assert graphs.count("_epilogue.default(") == (6 if training else 7)
    assert not none
