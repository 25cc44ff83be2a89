"""LSTM, GRU and RNN layers: one contraction for all inputs, then one for each step, and pointwise gates.

Everything is computed in fp32 (fp64 for fp64). The hidden state is rounded to the dtype of the inputs after
each step, since the next one reads it; the cell state of an LSTM is rounded once, at the end. A layer is one
op, whose length is no part of a graph; where gradients are wanted its steps are traced instead, with the same
bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bi_compile.errors import UnsupportedOpError
from bi_compile.templates import contraction
from bi_compile.templates.pointwise import unary

Tensor = torch.Tensor

_library = torch.library.Library("bi_compile", "FRAGMENT")
_library.define(
    "recurrent_layer(str cell, Tensor x, Tensor[] state, Tensor[] weights, bool reverse) -> Tensor[]",
    tags=(torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag),
)
_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
for _cell in _CELLS:
    _state, _ends = ("Tensor[]", "Tensor, Tensor") if _cell == "lstm" else ("Tensor", "Tensor")
    _rest = "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional"
    _library.define(
        f"differentiable_{_cell}(Tensor input, {_state} hx, {_rest}, bool batch_first) -> (Tensor, {_ends})"
    )
    _library.define(
        f"differentiable_{_cell}.data(Tensor data, Tensor batch_sizes, {_state} hx, {_rest}) "
        f"-> (Tensor, {_ends})"
    )


def _opmath(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _lstm_step(gates: Tensor, hidden: Tensor, state: Sequence[Tensor], fn: dict[str, Any]) -> list[Tensor]:
    i, f, g, o = (gates + hidden).chunk(4, -1)
    cell = fn["sigmoid"](f) * state[1] + fn["sigmoid"](i) * fn["tanh"](g)
    return [fn["sigmoid"](o) * fn["tanh"](cell), cell]


def _gru_step(gates: Tensor, hidden: Tensor, state: Sequence[Tensor], fn: dict[str, Any]) -> list[Tensor]:
    (reset, update, new), (r, z, n) = gates.chunk(3, -1), hidden.chunk(3, -1)
    kept = fn["sigmoid"](update + z)
    new = fn["tanh"](new + fn["sigmoid"](reset + r) * n)
    return [new + kept * (state[0] - new)]


def _tanh_step(gates: Tensor, hidden: Tensor, state: Sequence[Tensor], fn: dict[str, Any]) -> list[Tensor]:
    return [fn["tanh"](gates + hidden)]


def _relu_step(gates: Tensor, hidden: Tensor, state: Sequence[Tensor], fn: dict[str, Any]) -> list[Tensor]:
    total = gates + hidden
    return [torch.where(total <= 0, 0, total)]


_STEPS: dict[str, Callable[..., list[Tensor]]] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _tanh_step,
    "rnn_relu": _relu_step,
}
_TRACED = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
_CALLED = {"sigmoid": lambda x: unary(x, "sigmoid"), "tanh": lambda x: unary(x, "tanh")}


def _walk(
    cell: str,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    reverse: bool,
    fn: dict[str, Any],
) -> list[Tensor]:
    """One direction of one layer over x [T, B, I]: outputs [T, B, H] and the last state, each [B, H or P].

    weights: of the input, of the hidden state, their biases (or none), the projection of an LSTM (or none).
    """
    dtype = x.dtype
    matrices = [_opmath(w) for w in weights if w.dim() == 2]
    biases = [_opmath(b) for b in weights if b.dim() == 1] or [None, None]
    gates = contraction.linear(_opmath(x), matrices[0], biases[0])
    now = [_opmath(s) for s in state]
    outputs = []
    steps = range(x.shape[0])
    for t in reversed(steps) if reverse else steps:
        now = _STEPS[cell](gates[t], contraction.linear(now[0], matrices[1], biases[1]), now, fn)
        if len(matrices) == 3:
            now[0] = contraction.linear(now[0], matrices[2], None)
        outputs.append(now[0].to(dtype))
        now[0] = _opmath(outputs[-1])
    if reverse:
        outputs.reverse()
    return [torch.stack(outputs), *(s.to(dtype) for s in now)]


def _layer(
    cell: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], reverse: bool
) -> list[Tensor]:
    with torch.no_grad():
        return [t.contiguous() for t in _walk(cell, x, state, weights, reverse, _CALLED)]


def _fake_layer(
    cell: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], reverse: bool
) -> list[Tensor]:
    return [x.new_empty((*x.shape[:2], state[0].shape[-1])), *(s.new_empty(s.shape) for s in state)]


_library.impl("recurrent_layer", _layer, "CompositeExplicitAutograd")
torch.library.register_fake("bi_compile::recurrent_layer", _fake_layer, lib=_library)


def _differentiable(cell: str) -> Callable[..., Any]:
    def run(
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        states = list(hx) if cell == "lstm" else [hx]
        each = len(params) // (num_layers * (1 + bidirectional))
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *states, *params))
        x = input.transpose(0, 1) if batch_first else input
        last: list[list[Tensor]] = []
        for layer in range(num_layers):
            outputs = []
            for reverse in (False, True)[: 1 + bidirectional]:
                place = len(last)
                state, weights = [s[place] for s in states], list(params[place * each : (place + 1) * each])
                if wanted:
                    found = _walk(cell, x, state, weights, reverse, _TRACED)
                else:
                    found = torch.ops.bi_compile.recurrent_layer(cell, x, state, weights, reverse)
                outputs.append(found[0])
                last.append(found[1:])
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if train and dropout and layer < num_layers - 1:
                x = torch.dropout(x, dropout, True)
        ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
        return (x.transpose(0, 1) if batch_first else x, *ends)

    return run


def _refuse_packed(cell: str) -> Callable[..., Any]:
    def refuse(data: Tensor, batch_sizes: Tensor, *arguments: Any) -> Any:
        raise UnsupportedOpError(
            f"aten.{cell}.data",
            signature=f"a packed sequence of {data.dtype}",
            where=None,
            reason="packing puts the steps of several samples side by side; pass padded sequences",
        )

    return refuse


for _cell in _CELLS:
    _library.impl(f"differentiable_{_cell}", _differentiable(_cell), "CompositeImplicitAutograd")
    _library.impl(f"differentiable_{_cell}.data", _refuse_packed(_cell), "CompositeImplicitAutograd")

_ops = torch.ops.bi_compile
_aten = torch.ops.aten

CAPTURED = {
    torch.lstm: _ops.differentiable_lstm,
    torch.gru: _ops.differentiable_gru,
    torch.rnn_tanh: _ops.differentiable_rnn_tanh,
    torch.rnn_relu: _ops.differentiable_rnn_relu,
    _aten.lstm.input: _ops.differentiable_lstm,
    _aten.gru.input: _ops.differentiable_gru,
    _aten.rnn_tanh.input: _ops.differentiable_rnn_tanh,
    _aten.rnn_relu.input: _ops.differentiable_rnn_relu,
}
"""Stock function -> our op of the same signature; those of packed sequences refuse them."""
