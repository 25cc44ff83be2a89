"""Jagged nested tensors: products of their rows, and attention of their samples as of packed sequences.

A nested tensor [N, j, D] holds the rows of its samples one after another, values [T, D], and offsets [N + 1].
PyTorch computes most ops on the values, where they are rewritten like those of any tensor. Whole ops are
caught before; here is what they do with nested tensors.
"""

from typing import Any

import torch
from torch.nested._internal.nested_tensor import nested_view_from_values_offsets

from bi_compile.errors import UnsupportedOpError
from bi_compile.passes.varlen_attention import varlen_attention
from bi_compile.templates import contraction

Tensor = torch.Tensor


def is_nested(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.is_nested for t in tensors)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input [N, j, ..., In] to [N, j, ..., Out]: the rows of all samples are rows of one product."""
    if not input.is_nested or is_nested(weight, bias):
        raise _refused("linear", "its weight or bias is nested")
    _check("linear", input)
    return _like(input, contraction.linear(input.values(), weight, bias))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [N, Hq, j, D], key and value [N, Hkv, j', D] to [N, Hq, j, D]; samples attend to themselves.

    Raises UnsupportedOpError for masks and dropout, which PyTorch has not either, softcaps and sinks, for
    tensors of which only some are nested, and for causal attention of queries to keys of other lengths.
    """
    name = "scaled_dot_product_attention"
    if attn_mask is not None or dropout_p:
        raise _refused(name, "a mask or dropout was given")
    if softcap or sinks is not None:
        raise _refused(name, "a softcap or sinks were given")
    packed = []
    for tensor in (query, key, value):
        if not tensor.is_nested or tensor.dim() != 4:
            raise _refused(name, "query, key and value must be nested, [N, heads, j, size] each")
        packed.append(tensor.transpose(1, 2))
        _check(name, packed[-1])
    q, k, v = packed
    if is_causal and q.shape[1] != k.shape[1]:
        raise _refused(name, "causal, with queries and keys of other lengths")
    if q.shape[2] != k.shape[2] and not enable_gqa:
        raise _refused(name, f"{q.shape[2]} heads of queries, {k.shape[2]} of keys, without enable_gqa=True")
    out, _, _ = varlen_attention(
        q.values(),
        k.values(),
        v.values(),
        q.offsets(),
        k.offsets(),
        _longest(q),
        _longest(k),
        is_causal,
        scale,
    )
    return _like(q, out).transpose(1, 2)


def _longest(x: Any) -> int:
    return x._get_max_seqlen()


def _like(x: Any, values: Tensor) -> Tensor:
    """[N, j, ...]: other values at the rows of x, whose ragged dim is the same."""
    # As `torch.nested.nested_tensor_from_jagged` does, which cannot be traced.
    return nested_view_from_values_offsets(
        values, x.offsets(), min_seqlen=x._maybe_min_seqlen, max_seqlen=x._maybe_max_seqlen
    )


def _check(name: str, x: Any) -> None:
    if x.layout != torch.jagged:
        raise _refused(name, "nested tensors of layout torch.strided: make them with layout=torch.jagged")
    if x.lengths() is not None:
        raise _refused(name, "a nested tensor with holes: call contiguous() first")
    if x._ragged_idx != 1:
        raise _refused(name, "the ragged dim must come right after that of the samples")


def _refused(name: str, reason: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{name} of nested tensors", signature="a nested tensor", where=None, reason=reason
    )
