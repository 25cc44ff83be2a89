"""How the batch passes through each op: one line an op, in families."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bi_compile.allowed import allowed
from bi_compile.analysis import arithmetic, indexing, masks, movement, placing
from bi_compile.analysis.call import Call
from bi_compile.analysis.order import EXACT_POINTWISE, base_name

Rule = Callable[[Call], Any]


def _family(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **dict.fromkeys(EXACT_POINTWISE, arithmetic.pointwise),
    **_family(
        arithmetic.pointwise,
        """
        acos acosh asin asinh atan atan2 atanh clamp clamp_max clamp_min copy cos cosh erf erfc erfinv exp
        exp2 expm1 floor_divide fma fmax fmin fmod hypot lgamma log log10 log1p log2 maximum minimum pow relu
        dropout_mask remainder rsqrt sigmoid sin sinh sqrt tan tanh unary binary bucketize
        digamma i0 igamma igammac polygamma special_airy_ai special_bessel_j0 special_bessel_j1
        special_bessel_y0 special_bessel_y1 special_erfcx special_i0e special_i1 special_i1e special_log_ndtr
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
        special_modified_bessel_k1 special_ndtri special_scaled_modified_bessel_k0
        special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_zeta
        """,
    ),
    **_family(
        arithmetic.cast,
        "_to_copy alias clone contiguous convert_element_type detach device_put lift_fresh lift_fresh_copy "
        "copy_strided _assert_tensor_metadata view_as_real view_as_complex view_element_type tril triu",
    ),
    **_family(
        arithmetic.creation,
        """
        empty empty_like empty_permuted empty_strided eye fill full full_like linspace new_empty
        new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices
        zeros zeros_like
        """,
    ),
    # Single numbers, from which dropout makes the noise of each sample; the check refuses other uses.
    **_family(arithmetic.creation, "inductor_seeds inductor_lookup_seed inductor_randint"),
    **_family(arithmetic.iota, "iota arange"),
    **_family(
        movement.reshape, "_reshape_alias _unsafe_view flatten reshape unflatten view view_as view_copy"
    ),
    **_family(movement.permute, "movedim mT numpy_T permute permute_copy swapaxes t transpose"),
    **_family(movement.squeeze, "squeeze"),
    **_family(movement.unsqueeze, "unsqueeze"),
    **_family(movement.expand, "broadcast_tensors expand expand_as expand_copy"),
    **_family(movement.repeat, "repeat tile"),
    **_family(movement.select, "select unbind unbind_copy"),
    **_family(movement.cut, "narrow slice"),
    **_family(movement.pieces, "chunk split split_copy split_with_sizes unsafe_split"),
    **_family(movement.concatenate, "cat concat"),
    **_family(
        movement.pad,
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    **_family(movement.rearrange, "flip rev roll"),
    **_family(movement.windows, "unfold"),
    **_family(movement.diagonal, "diagonal"),
    **_family(movement.strided, "as_strided"),
    **_family(movement.placed, "diagonal_scatter select_scatter slice_scatter"),
    **_family(
        arithmetic.reduction,
        """
        all amax amin aminmax any argmax argmin count_nonzero logsumexp max mean min norm prod std sum var
        var_mean
        """,
    ),
    **_family(
        arithmetic.along,
        """
        _log_softmax _log_softmax_backward_data _softmax _softmax_backward_data cummax cummin cumprod cumsum
        log_softmax logcumsumexp softmax
        """,
    ),
    **_family(arithmetic.ordering, "kthvalue median mode msort sort topk"),
    **_family(arithmetic.searchsorted, "searchsorted"),
    **_family(arithmetic.norm, "layer_norm rms_norm added_layer_norm added_rms_norm"),
    **_family(arithmetic.recurrent, "recurrent_layer"),
    **_family(arithmetic.product, "_int_mm addmm baddbmm bmm mm product_epilogue"),
    **_family(arithmetic.linear, "linear linear_epilogue"),
    **_family(arithmetic.distances, "cdist"),
    **_family(arithmetic.attention, "attention"),
    **_family(
        arithmetic.samples_first,
        """
        convolution avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices pixel_shuffle
        pixel_unshuffle channel_shuffle _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        """,
    ),
    **_family(
        arithmetic.batch_statistics,
        """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional _batch_norm_with_update
        _batch_norm_with_update_functional
        """,
    ),
    **_family(arithmetic.count, "bincount histc"),
    **_family(arithmetic.unique, "_unique2 unique_consecutive unique_dim"),
    **_family(arithmetic.sampled, "grid_sampler_2d grid_sampler_3d"),
    **_family(arithmetic.transform, "_fft_c2c _fft_c2r _fft_r2c"),
    **_family(
        arithmetic.matrices,
        """
        _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd cholesky
        cholesky_inverse cholesky_solve geqrf inverse linalg_cholesky_ex linalg_eig linalg_eigvals
        linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu
        linalg_pinv linalg_lu_factor_ex linalg_lu_solve linalg_matrix_exp linalg_qr linalg_solve_triangular
        lu_unpack ormqr triangular_solve
        """,
    ),
    **_family(indexing.embedding, "embedding"),
    **_family(indexing.gather, "gather"),
    **_family(indexing.index_select, "index_select"),
    **_family(indexing.index, "index _unsafe_index"),
    **_family(masks.nonzero, "nonzero"),
    **_family(masks.masked_select, "masked_select"),
    **_family(masks.masked_scatter, "masked_scatter matched_masked_scatter"),
    **_family(placing.scatter, "scatter scatter_add scatter_reduce"),
    **_family(placing.index_add, "index_add index_copy index_reduce"),
    **_family(placing.index_put, "index_put _unsafe_index_put index_put_add"),
    **_family(indexing.grouped, "grouped_mm _grouped_mm grouped_mm_epilogue"),
}
"""Op name, of the namespaces aten, prims and bi_compile alike -> its rule."""

_EFFECTS = frozenset("_assert_async _assert_scalar sym_constrain_range sym_constrain_range_for_size".split())


def rule_of(op: torch._ops.OpOverload) -> Rule | None:
    """The rule of an op; in-place ops have that of their functional form."""
    if entry := allowed(op):
        return partial(arithmetic.vouched, entry=entry)
    name = base_name(op)
    if name in _EFFECTS:
        return arithmetic.creation
    return RULES.get(name) or (RULES.get(name[:-1]) if name.endswith("_") else None)
