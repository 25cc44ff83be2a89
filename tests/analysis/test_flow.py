"""The batch is followed through every family of ops: what keeps samples apart, what mixes them.

Each case is traced as compiled graphs are, once with fixed sizes and once with a symbol for the batch. The
batch is as large as another dim, so that nothing can be told by size.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from bi_compile.analysis.flow import follow
from bi_compile.analysis.rules import RULES
from bi_compile.passes.capture import CAPTURED
from bi_compile.pipeline import decompositions

cdist = CAPTURED[torch.cdist]
hermite = torch.special.hermite_polynomial_h
attend = CAPTURED[F.scaled_dot_product_attention]
B, S, D = 6, 6, 8
_weights = [torch.randn(3 * D, D), torch.randn(3 * D, D)]


def gru(x, _):
    state = torch.zeros(1, x.shape[0], D)
    return CAPTURED[torch.gru](x, state, _weights, False, 1, 0.0, False, False, True)


X = torch.randn(B, S, D)
ROWS = torch.randn(B, D)
IDS = torch.randint(0, 9, (B, S))
W = torch.randn(D, D)
EXPERTS = torch.randn(4, D, D)
GATE = torch.randn(D, 4)


def analysed(fn, *inputs, dims=None, symbolic=False):
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    kind = DimDynamic.DYNAMIC if symbolic else DimDynamic.STATIC
    fakes = []
    for i, x in enumerate(inputs):
        sizes = [kind if d == 0 else DimDynamic.STATIC for d in range(x.dim())]
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        fakes.append(mode.from_tensor(x, symbolic_context=context, source=LocalSource(f"x{i}")))
    with enable_python_dispatcher(), mode:
        graph = make_fx(fn, decomposition_table=decompositions(), _allow_non_fake_inputs=True)(*fakes)
    placeholders = graph.graph.find_nodes(op="placeholder")
    own = dims or [(0,)] * len(inputs)
    given = [*own, *[()] * (len(placeholders) - len(own))]
    return graph.graph, follow(graph.graph, given)


def moe_loop(x, gate, experts):
    flat = x.reshape(-1, D)
    weights, chosen = torch.softmax(flat @ gate, -1).topk(2)
    out = torch.zeros_like(flat)
    for expert in range(experts.shape[0]):
        token, place = torch.where(chosen == expert)
        rows = flat[token] @ experts[expert] * weights[token, place, None]
        out = out.index_add(0, token, rows)
    return out.reshape(x.shape)


def moe_grouped(x, gate, experts):
    """As transformers computes experts by grouped products."""
    flat = x.reshape(-1, D)
    weights, chosen = torch.softmax(flat @ gate, -1).topk(2)
    ids, order = chosen.reshape(-1).sort()
    counts = torch.histc(ids.float(), bins=experts.shape[0], min=0, max=experts.shape[0] - 1)
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = torch.ops.bi_compile.grouped_mm(flat[order // 2], experts, ends)
    rows = rows * weights.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(order.shape[0])
    return rows[back].view(-1, 2, D).sum(1).reshape(x.shape), rows[order.argsort()].view(-1, 2, D).sum(1)


def attention_by_hand(x):
    q = (x @ W).view(x.shape[0], S, 2, D // 2).transpose(1, 2)
    weights = torch.softmax(q @ q.transpose(-1, -2) + torch.ones(S, S).tril().log(), -1)
    return (weights @ q).transpose(1, 2).reshape(x.shape)


APART = {
    "linear and norm": lambda x: F.layer_norm(F.linear(x, W), (D,)).relu(),
    "flattened tokens": lambda x: (x.reshape(-1, D) @ W).view(x.shape),
    "time first and back": lambda x: (x.transpose(0, 1).reshape(-1, D) @ W).view(S, -1, D).transpose(0, 1),
    "attention by hand": attention_by_hand,
    "attention": lambda x: attend(x[:, None], x[:, None], x[:, None], is_causal=True),
    "softmax over features": lambda x: x.softmax(-1) + x.softmax(1),
    "reductions of samples": lambda x: x - x.mean((1, 2), keepdim=True) + x.amax(-1, keepdim=True),
    "class token": lambda x: torch.cat([torch.zeros(1, 1, D).expand(x.shape[0], -1, -1), x], 1)[:, 0],
    "guidance": lambda x: sum((2 * torch.cat([x, x])).chunk(2)),
    "embedding": lambda ids: F.embedding(ids, torch.ones(9, D)).sum(1),
    "gather by its own index": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "mask": lambda x: x.masked_fill(x > 1, 0.0) + torch.where(x > 0, x, -x),
    "windows": lambda x: x.unfold(1, 3, 1).sum(-1),
    "heads merged with the batch": lambda x: torch.bmm(
        x.reshape(x.shape[0] * 2, S // 2, D), x.reshape(x.shape[0] * 2, S // 2, D).transpose(1, 2)
    ),
    "repeated for each head": lambda x: x.repeat(2, 1, 1) * 2,
    "scan": lambda x: x.cumsum(1),
    "written into columns": lambda x: torch.zeros(x.shape[0], S, 9).scatter(2, (x > 0).long(), x),
    "distances to prototypes": lambda x: cdist(x, torch.ones(4, D)) + cdist(x, x).sum(-1, keepdim=True),
    "buckets": lambda x: torch.where(torch.searchsorted(torch.tensor([0.0, 1.0]), x) > 0, x, -x),
    "own rows by places": lambda x: x[torch.arange(x.shape[0]), (x[..., 0] > 0).sum(1) - 1],
    "rows twice by places": lambda x: x[torch.arange(2 * x.shape[0]) // 2],
    "tokens by places": lambda x: x.flatten(0, 1)[torch.arange(x.shape[0] * S)].view(x.shape),
    "recurrent": lambda x: gru(x, None)[0].softmax(-1),
    "features put in their places": lambda x: x.masked_scatter(x > 0, x[:, :2] * 2),
    "features put among zeros": lambda x: torch.zeros_like(x).masked_scatter(x > 0, x[:, :2].flatten()),
    "rows put back by their mask": lambda x: x.index_put((x[..., 0] > 0,), x[x[..., 0] > 0] * 2),
    "ranks within samples": lambda x: torch.where(torch.searchsorted(x, x) > 2, x, -x),
}
MOVED = {
    "rolled": lambda x: x.roll(1, 0) + x,
    "rolled tokens": lambda x: x.flatten(0, 1).roll(1, 0).view(x.shape),
    "shifted": lambda x: x[(torch.arange(x.shape[0]) + 1) % x.shape[0]],
    "last first": lambda x: x[torch.arange(x.shape[0] - 1, -1, -1)],
    "in pairs": lambda x: x[torch.arange(x.shape[0]) // 2],
    "first only": lambda x: x[torch.arange(x.shape[0]) * 0],
    "spectrum": lambda x: torch.fft.fftshift(x, 0),
    "reflected": lambda x: F.pad(x.permute(1, 2, 0), (1, 1), mode="reflect"),
    "replicated": lambda x: F.pad(x.permute(1, 2, 0), (1, 1), mode="replicate"),
    "tokens of the first": lambda x: x.flatten(0, 1)[torch.arange(x.shape[0])],
}
MIXED = {
    **{name: (fn, "index.Tensor") for name, fn in MOVED.items()},
    "mean over the batch of states": (lambda x: gru(x, None)[0].mean(0), "bi_compile.mean"),
    "recurrent over the batch": (lambda x: gru(x.transpose(0, 1), None)[0], "recurrent_layer"),
    "mean over the batch": (lambda x: x - x.mean(0), "bi_compile.mean"),
    "sum of everything": (lambda x: x.sum(), "bi_compile.sum"),
    "softmax over the batch": (lambda x: x.softmax(0), "bi_compile.softmax"),
    "cumsum over the batch": (lambda x: x.cumsum(0), "cumsum"),
    "maximum of everything": (lambda x: x / x.abs().amax(), "bi_compile.amax"),
    "contrast": (lambda x: (x[:, 0] @ x[:, 0].t()).softmax(-1), "bi_compile.mm"),
    "outer product": (lambda x: x[:, None, 0] * x[None, :, 0], "aten.mul"),
    "product over the batch": (lambda x: x[:, 0].t() @ x[:, 0], "bi_compile.mm"),
    "reversed": (lambda x: x + x.flip(0), "prims.rev"),
    "neighbours": (lambda x: x[1:] - x[:-1], "aten.slice"),
    "first sample": (lambda x: x - x[0], "aten.select"),
    "fixed samples": (lambda x: x[torch.tensor([1, 0, 2, 3, 4, 5])], "aten.index"),
    "batch norm in training": (nn.BatchNorm1d(S).train(), "native_batch_norm"),
    "norm over flattened samples": (lambda x: x.reshape(-1, D).std(0), "bi_compile.var"),
    "distances between samples": (lambda x: cdist(x[:, 0], x[:, 0]), "bi_compile.cdist"),
    "ranks in the batch": (lambda x: torch.searchsorted(x[:, 0, 0], x[:, 0, 0]) > 2, "aten.searchsorted"),
    "attention over the batch": (
        lambda x: attend(x.transpose(0, 1)[None], x.transpose(0, 1)[None], x.transpose(0, 1)[None]),
        "bi_compile.attention",
    ),
    "shared elements by a count": (lambda x: x.masked_scatter(x > 0, W.flatten()), "aten.masked_scatter"),
    "shared rows by a count": (lambda x: x.index_put((x[..., 0] > 0,), W), "aten.index_put"),
    "how many are positive": (lambda x: x * (x > 0).nonzero().shape[0], "aten.mul"),
    "filled with a count": (lambda x: x + torch.full((1,), (x > 0).nonzero().shape[0]), "aten.add"),
    "how many are different": (lambda x: x * x.long().unique().shape[0], "aten.mul"),
    "how many equals": (lambda x: x * x.long().unique(return_counts=True)[1].max(), "aten.mul"),
    "different values": (lambda x: x.unique().max() + x, "aten._unique2"),
    "capacity": (
        lambda x: x * ((x > 0).long().cumsum(0) < 3),
        "aten.mul",
    ),
}


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", APART)
def test_samples_stay_apart(name, symbolic):
    graph, flow = analysed(APART[name], IDS if name == "embedding" else X.clone(), symbolic=symbolic)
    assert {n: f.reason for n, f in flow.findings.items()} == {}
    (result,) = graph.output_node().all_input_nodes
    assert flow.value(result).startswith(("f32[B, ", "f32[2*B, ", "f32[B*2, ")), flow.value(result)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", MIXED)
def test_mixing_is_found_at_its_op(name, symbolic):
    fn, op = MIXED[name]
    _, flow = analysed(fn, X.clone(), symbolic=symbolic)
    mixed = [node for node, finding in flow.findings.items() if finding.mixes]
    assert mixed, flow.findings
    assert op in str(mixed[0].target)
    path = flow.findings[mixed[0]].path
    assert path[0].op == "placeholder"
    assert path[-1] is mixed[0]


def test_the_same_ops_mix_or_not_by_the_declared_dim():
    fn = lambda x: x.mean(0)  # noqa: E731
    assert analysed(fn, X, dims=[(0,)])[1].findings
    for dims in [(1,)], [(2,)], [()]:
        assert not analysed(fn, X, dims=dims)[1].findings


def test_two_batches_are_followed_at_once():
    graph, flow = analysed(lambda x: x.reshape(-1, D) @ W, X, dims=[(0, 1)])
    (result,) = graph.output_node().all_input_nodes
    assert not flow.findings or all(not f.mixes for f in flow.findings.values())
    assert "B" in flow.value(result) or flow.findings


def test_experts_by_places_keep_tokens_apart():
    _, flow = analysed(moe_loop, X, torch.randn(D, 4), EXPERTS, dims=[(0,), (), ()])
    assert not [f.reason for f in flow.findings.values() if f.mixes]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_experts_in_groups_keep_tokens_apart(symbolic):
    graph, flow = analysed(moe_grouped, X, GATE, EXPERTS, dims=[(0,), (), ()], symbolic=symbolic)
    assert not flow.findings
    for out in graph.output_node().args[0]:
        (axis,) = flow.flows[out].axes
        assert not axis.ragged


def test_counts_of_tokens_may_not_enter_arithmetic():
    def balance(x, gate):
        chosen = (x.reshape(-1, D) @ gate).argmax(-1)
        return x * torch.histc(chosen.float(), bins=4, min=0, max=3).sum()

    _, flow = analysed(balance, X, GATE, dims=[(0,), ()])
    assert any(finding.mixes for finding in flow.findings.values())


def test_an_op_without_a_rule_is_unknown_and_named_once():
    _, flow = analysed(lambda x: hermite(hermite(x, 3), 2) * 2, X)
    (finding,) = flow.findings.values()
    assert not finding.mixes
    assert "no rule" in finding.reason


def test_rows_chosen_by_another_input_are_unknown():
    _, flow = analysed(lambda x, i: x[i], ROWS, torch.arange(B))
    (finding,) = flow.findings.values()
    assert not finding.mixes


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_rows_of_samples_handed_out_by_a_mask_are_unknown(symbolic):
    """Each may have as many places as it brings rows, or not."""
    _, flow = analysed(
        lambda x: x.index_put((x[..., 0] > 0,), x[:, :2].flatten(0, 1)), X.clone(), symbolic=symbolic
    )
    (finding,) = flow.findings.values()
    assert not finding.mixes
    assert "by a count over the batch" in finding.reason


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_places_of_samples_among_all_elements_mix_nothing(symbolic):
    """Unpooling adds each sample's place to its indices. They choose; they do not enter arithmetic."""

    def unpooled(x):
        pooled, places = F.max_pool2d(x[:, None, :, :6], 2, return_indices=True)
        return F.max_unpool2d(pooled, places, 2)

    _, flow = analysed(unpooled, X.clone(), symbolic=symbolic)
    assert not [f.reason for f in flow.findings.values() if f.mixes]


def test_as_many_rows_as_there_were_samples_are_unknown():
    """A graph break may hand on the number of samples as a number; any other number takes some of them."""
    _, flow = analysed(lambda x: x[torch.arange(B)], ROWS, symbolic=True)
    (finding,) = flow.findings.values()
    assert not finding.mixes
    _, flow = analysed(lambda x: x[torch.arange(B - 1)], ROWS, symbolic=True)
    (finding,) = flow.findings.values()
    assert finding.mixes


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_shifted_samples_are_not_taken_for_their_own(symbolic):
    _, flow = analysed(lambda x: x + x.roll(1, 0), X, symbolic=symbolic)
    assert flow.findings


def test_samples_written_to_other_places_mix():
    shifted = lambda x: torch.zeros_like(x).index_put(((torch.arange(x.shape[0]) + 1) % x.shape[0],), x)  # noqa: E731
    _, flow = analysed(shifted, X, symbolic=True)
    (finding,) = flow.findings.values()
    assert finding.mixes


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_a_sample_stay_its_own(mode):
    graph, flow = analysed(lambda ids: F.embedding_bag(ids, torch.ones(9, D), mode=mode), IDS, symbolic=True)
    assert {n: f.reason for n, f in flow.findings.items()} == {}
    (result,) = graph.output_node().all_input_nodes
    assert flow.value(result) == "f32[B, 8]"


def test_every_op_of_ours_has_a_rule():
    names = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("bi_compile::")}
    # Traced through, never in a graph; put in with the batch known, and its loop; of no tensor.
    inner = {n for n in names if "::differentiable_" in n}
    inner |= {"bi_compile::isolated", "bi_compile::isolated_calls", "bi_compile::bf16_order"}
    assert {n.split("::")[1] for n in names - inner} - set(RULES) == set()


def test_a_batch_of_one_mixes_nothing():
    _, flow = analysed(lambda x: x - x.mean(0), X[:1])
    assert not flow.findings


def test_a_batch_of_none_mixes_nothing():
    _, flow = analysed(lambda x: attention_by_hand(x).softmax(0), X[:0])
    assert not flow.findings


def test_the_number_of_samples_may_not_enter_arithmetic():
    _, flow = analysed(lambda x: x / x.shape[0], X.clone(), symbolic=True)
    assert any(f.mixes for f in flow.findings.values())
