"""LSTM, GRU and RNN layers: compiled, never left to eager PyTorch; one contraction a step."""

import pytest
import torch
from torch import nn

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits
from tests.passes.tables import op_names, traced

X = torch.randn(5, 6, 13)  # [batch, time, features]

REWRITTEN = {
    "lstm": nn.LSTM(13, 7),
    "lstm, two layers in both directions": nn.LSTM(13, 7, num_layers=2, bidirectional=True),
    "lstm with a projection": nn.LSTM(13, 7, proj_size=3),
    "lstm without biases": nn.LSTM(13, 7, bias=False),
    "gru": nn.GRU(13, 7, bidirectional=True),
    "rnn": nn.RNN(13, 7, num_layers=2),
    "rnn of relu": nn.RNN(13, 7, nonlinearity="relu"),
}
LEFT_ALONE = {"one step by hand": lambda x, w: torch.rnn_tanh_cell(x, x, w, w)}


def leaves(out):
    return [t for part in out for t in (part if isinstance(part, tuple) else (part,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", REWRITTEN)
@torch.no_grad()
def test_is_rewritten(name, dtype):
    model, x = REWRITTEN[name].to(dtype), X.transpose(0, 1).to(dtype)
    stock = leaves(model(x))
    with bi_compile.eager():
        ours = leaves(model(x))
        alone = leaves(model(x[:, 2:3]))
        for got, part in zip(ours, alone, strict=True):
            assert_same_bits(part, got[:, 2:3], "alone")
    with torch.enable_grad(), bi_compile.eager():
        # Traced step by step, with gradients.
        for got, want in zip(leaves(model(x)), ours, strict=True):
            assert_same_bits(got.detach(), want, "with gradients")
    exact = leaves(model.double()(x.double()))
    model.to(torch.float32)
    for got, theirs, want in zip(ours, stock, exact, strict=True):
        error, allowed = (got - want).abs().max(), (theirs - want).abs().max()
        assert error <= 1.5 * allowed + torch.finfo(dtype).eps, (error, allowed)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    graph = traced(LEFT_ALONE[name], X[:, 0], torch.randn(13, 13))
    assert "bi_compile.recurrent_layer" not in op_names(graph)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(13, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(14, 5, batch_first=True)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])[0]


@torch.no_grad()
def test_compiled_for_any_batch():
    torch.compiler.reset()
    model = Reader().eval()
    with collect() as report:
        compiled = torch.compile(model, backend="batch_invariant")
        assert_batch_invariant(compiled, X, trials=1, sizes=(1, 2, 3, 7, 33), control=model, reference=model)
    assert report.compilations >= 1
    with bi_compile.eager():
        want = model(X)
    assert_same_bits(compiled(X), want)


@torch.no_grad()
def test_packed_sequences_are_refused():
    packed = nn.utils.rnn.pack_padded_sequence(X, torch.tensor([6, 5, 3, 2, 2]), batch_first=True)
    model = nn.LSTM(13, 7)
    with pytest.raises(bi_compile.BatchInvariantError, match=r"lstm\.data"), bi_compile.eager():
        model(packed)
