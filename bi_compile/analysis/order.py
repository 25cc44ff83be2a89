"""Which ATen ops give one result whatever the order, and which do not.

An op is listed here when its result is fixed by its definition: pointwise arithmetic that IEEE 754 rounds
correctly, data movement, comparison, creation. Everything else either has a canonical lowering
(`bi_compile.passes`) or is refused: the lists say what is known to be safe, so an op nobody has thought of
is never let through.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

EXACT_POINTWISE = frozenset(
    """
    abs add bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil
    clone copysign div eq equal floor ge gt isinf isnan le
    logical_and logical_not logical_or logical_xor lt masked_fill mul ne neg positive
    reciprocal round sign signbit sub trunc where __and__ __or__ __xor__ __lshift__
    __rshift__ _to_copy _conj nan_to_num isfinite square frac threshold
    threshold_backward sgn ldexp nextafter gcd isneginf isposinf heaviside true_divide rsub hardshrink
    softshrink frexp
    """.split()
)
"""Ops in which every element is a few correctly rounded IEEE operations (or none) of its own inputs."""

DATA_MOVEMENT = frozenset(
    """
    _reshape_alias _unsafe_index _unsafe_masked_index _unsafe_view alias as_strided as_strided_scatter
    broadcast_tensors cat chunk concat constant_pad_nd contiguous copy copy_ detach diagonal
    diagonal_scatter embedding expand expand_as fill fill_ flatten flip gather index index_select
    lift_fresh lift_fresh_copy masked_select movedim narrow nonzero pad permute repeat repeat_interleave
    reshape resize resize_as roll select select_scatter slice slice_scatter split split_with_sizes squeeze
    stack swapaxes t take tile transpose tril triu unbind unflatten unfold unsafe_split unsqueeze view view_as
    view_as_complex view_as_real view_copy reflection_pad1d reflection_pad2d replication_pad1d
    replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle _local_scalar_dense item scatter
    split_copy unbind_copy permute_copy expand_copy bucketize searchsorted one_hot masked_scatter
    cummax cummin mode masked_scatter_backward set _jagged_to_padded_dense_forward
    _padded_dense_to_jagged_forward
    """.split()
)
"""Ops that copy elements or look at where they are, without arithmetic on floating values.

`scatter` is here because its duplicates are undefined by PyTorch itself; `scatter_add` is not. `cummax` and
`cummin` compare in index order and keep the last of equals; `mode` is a function of its row; `sort` is looked
at apart.
"""

CREATION = frozenset(
    """
    arange empty empty_like empty_permuted empty_strided eye full full_like linspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like
    tril_indices triu_indices _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range
    sym_constrain_range_for_size sym_numel sym_size sym_storage_offset sym_stride is_pinned size stride
    numel
    """.split()
)
"""Ops whose result holds no input values."""

ORDER_FREE_REDUCTIONS = frozenset("any all any_dim all_dims count_nonzero histc".split())
"""Reductions whose result is the same in every order, for every dtype; `histc` counts."""

EXACT_FOR_INTEGERS = frozenset(
    """
    sum prod amax amin max min argmax argmin aminmax cumsum cumprod mm bmm addmm baddbmm mv dot
    _int_mm pow remainder relu clamp clamp_min clamp_max maximum minimum fmax fmin bincount
    unique_dim _unique2 unique_consecutive scatter_add index_add index_put scatter_reduce floor_divide fmod
    """.split()
)
"""Ops that need an order on floating values and none on integers and booleans."""

PRIMS = frozenset(
    "convert_element_type iota device_put view_element_type rev broadcast_in_dim copy_strided "
    "scalar_tensor _make_token _sink_tokens".split()
)
"""Exact ops of the `prims` namespace that decompositions and Inductor's own passes put into graphs."""


NO_ORDER = "its result may depend on an order of evaluation that nobody has fixed"
_BATCH_SCALE = (
    "it quantises its input by one scale, of the largest value of the whole batch: take a scale for each "
    "token, or leave the layer in floating point"
)


def why_open(op: str) -> str:
    """Why nothing is promised for an op without a lowering, by its name."""
    return _BATCH_SCALE if op.startswith("quantized.") and "dynamic" in op else NO_ORDER


def is_check(node: fx.Node) -> bool:
    """Whether a call raises for some values (a singular matrix) and else does nothing.

    Such calls are kept in order by a wrapper, whose first arguments are a token and the op.
    """
    return str(node.target) == "with_effects" and str(node.args[1]) == "aten._linalg_check_errors.default"


def base_name(op: torch._ops.OpOverload) -> str:
    """`aten.add.Tensor` -> "add"."""
    return op._schema.name.split("::", 1)[1]


def is_order_free(
    op: torch._ops.OpOverload, dtypes: set[torch.dtype], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the result of this call of `op` is fixed by its definition.

    dtypes: of the op's tensor inputs and outputs; an op on integers and booleans alone has no rounding.
    """
    namespace = op.namespace
    name = base_name(op)
    exact_dtype = not any(d.is_floating_point or d.is_complex for d in dtypes)
    if namespace == "prims":
        return name in PRIMS
    if namespace == "inductor":
        return False
    if namespace != "aten":
        return namespace == "bi_compile"
    if name in ("index_put", "index_put_"):
        return exact_dtype or not (args[3] if len(args) > 3 else kwargs.get("accumulate", False))
    if name == "sort":  # the order of equal elements is fixed only where it is asked for
        return bool(kwargs.get("stable"))
    if name == "scatter" and op._overloadname in ("reduce", "value_reduce"):
        return exact_dtype
    if name.rstrip("_") in EXACT_FOR_INTEGERS and exact_dtype:
        return True
    # In-place ops are listed under the name of their functional form.
    names = {name, name[:-1]} if name.endswith("_") else {name}
    return any(names & group for group in (EXACT_POINTWISE, DATA_MOVEMENT, CREATION, ORDER_FREE_REDUCTIONS))
