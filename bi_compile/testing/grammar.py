"""The ops that random models are made of: one line each.

An op is written as code with names in braces: `{x}` is the value so far and `{y}` an earlier one, `{d}` and
`{e}` are dimensions that hold no batch, `{n}` is a size, `{k}` a small number, `{last}`, `{c}` and `{size}`
the extents of the last dimension, of dimension 1 and of `d`; `{w:n,last}` is a weight of that shape and
`{m:nn.GRU(last, n)}` a module. No op may let one sample see another.
"""

import itertools

from bi_compile.testing.op_tables import ALONG, BINARY, POINTWISE, REDUCED
from bi_compile.testing.sites import Misfit, Op, Rows, Shape, Site, broadcast, merged

HELPERS = {
    "ids": "def ids(x, n):\n    return (x.nan_to_num().clamp(-50, 50) * 7).long() % n",
    "broken": "def broken(x):\n    torch._dynamo.graph_break()\n    return x",
    "outside": "@torch.compiler.disable\ndef outside(x):\n    return torch.tanh(x).cumsum(-1)",
}
"""Functions that the code of some ops calls."""


def _table(text: str, **rules) -> list[Op]:
    lines = [line.split(None, 1) for line in text.strip().splitlines()]
    return [Op(name, code, **rules) for name, code in lines]


def _wide(at: Site) -> bool:
    return at.dtype in ("float32", "float64")


def _batched(at: Site) -> bool:
    """The batch, and nothing else, is dimension 0."""
    return at.shape[0] == Rows()


def _first(at: Site) -> bool:
    """Dimension 0 holds the batch, maybe with others."""
    return at.batch == 0


def _first_of(*ranks: int):
    return lambda at: at.batch == 0 and at.rank in ranks


def _matrices(at: Site) -> bool:
    """The last two dimensions hold no batch."""
    return at.rank > 2 and at.batch < at.rank - 2


def _room(length: int):
    """The last dimension has at least that extent."""
    return lambda at: at.batch == 0 and at.rank > 2 and at.last >= length


def _removed(at: Site) -> Shape:
    return at.replaced(at.d)


def _kept(at: Site) -> Shape:
    return at.replaced(at.d, 1)


def _last(extents):
    """The last dimension becomes what `extents` says."""
    return lambda at: at.replaced(-1, extents(at))


def _channels(extents, length=lambda at, n: n):
    """[B, c, spatial...] -> [B, extents, length of each spatial dimension...]."""
    return lambda at: (
        at.shape[0],
        extents(at),
        *(_positive(length(at, at.extent(d))) for d in range(2, at.rank)),
    )


def _positive(n: int) -> int:
    if n < 1:
        raise Misfit("nothing is left")
    return n


def _with_y(at: Site) -> Shape:
    shape = broadcast(at.y.shape, at.shape)
    assert shape is not None
    return shape


def _flattened(at: Site) -> Shape:
    d = at.neighbour
    return (*at.shape[:d], merged(at.shape[d], at.shape[d + 1]), *at.shape[d + 2 :])


def _unflattened(at: Site) -> Shape:
    return at.replaced(at.any, *at.parts)


def _transposed(at: Site) -> Shape:
    shape = list(at.shape)
    shape[at.any], shape[at.other] = shape[at.other], shape[at.any]
    return tuple(shape)


def _moved(at: Site) -> Shape:
    return (*at.replaced(at.any), at.shape[at.any])


def _even(at: Site) -> bool:
    return at.size % 2 == 0


def _halved(at: Site) -> Shape:
    return at.replaced(at.d, at.size // 2)


_MOVEMENT = [
    Op("unflatten", "{x}.unflatten({any}, {parts})", _unflattened),
    Op("flatten", "{x}.flatten({neighbour}, {neighbour} + 1)", _flattened),
    Op("transpose", "{x}.transpose({any}, {other})", _transposed),
    Op("to_the_end", "{x}.movedim({any}, -1)", _moved),
    Op("unsqueeze", "{x}.unsqueeze({any})", lambda at: at.replaced(at.any, 1, at.shape[at.any])),
    Op("squeeze", "{x}.squeeze({d})", _removed, lambda at: at.size == 1),
    Op("narrow", "{x}.narrow({d}, {size} // 2, 1)", _kept),
    Op("every_second", "{x}.unfold({d}, 1, 2).squeeze(-1)", lambda at: at.replaced(at.d, (at.size + 1) // 2)),
    Op("repeat", "{x}.repeat_interleave({k}, {d})", lambda at: at.replaced(at.d, at.size * at.k)),
    Op("cat", "torch.cat([{x}, {x} * 2], {d})", lambda at: at.replaced(at.d, at.size * 2)),
    Op("stack", "torch.stack([{x}, -{x}], {d})", lambda at: at.replaced(at.d, 2, at.size)),
    Op("expand", "{x}.unsqueeze({d}).repeat_interleave(3, {d})", lambda at: at.replaced(at.d, 3, at.size)),
    Op("pad", "F.pad({x}, (1, 2))", _last(lambda at: at.last + 3)),
    Op("pad_value", "F.pad({x}, ({k}, 0), value=0.5)", _last(lambda at: at.last + at.k)),
    Op("tril", "{x}.tril()", when=_matrices),
    Op("triu", "{x}.triu(1)", when=_matrices),
    Op("diagonal", "{x}.diagonal(dim1=-2, dim2=-1)", lambda at: (*at.shape[:-2], min(at.last, at.extent(-2))), _matrices),
    Op("diff", "{x}.diff(dim={d})", lambda at: at.replaced(at.d, _positive(at.size - 1))),
    Op("windows", "{x}.unfold({d}, 2, 1).sum(-1)", lambda at: at.replaced(at.d, _positive(at.size - 1))),
    Op("one_hot", "F.one_hot(ids({x}, 5), 5).to({x}.dtype)", lambda at: (*at.shape, 5)),
    Op("pixel_unshuffle", "F.channel_shuffle({x}, 2)", when=lambda at: _first_of(3, 4)(at) and at.c % 2 == 0),
    Op("chunk", "{x}.chunk(2, {d})[1]", _halved, _even),
]  # fmt: skip

_PRODUCTS = [
    Op("linear", "F.linear({x}, {w:n,last}, {w:n})", _last(lambda at: at.n)),
    Op("linear_no_bias", "F.linear({x}, {w:n,last})", _last(lambda at: at.n)),
    Op("matmul", "{x} @ {w:last,n}", _last(lambda at: at.n)),
    Op("matvec", "{x} @ {w:last}", lambda at: at.replaced(-1), lambda at: at.rank > 1 and at.last > 0),
    Op("addmm", "torch.addmm({w:n}, {x}, {w:last,n}, beta=0.5, alpha=2)", _last(lambda at: at.n), lambda at: at.rank == 2),
    Op("gram", "{x} @ {x}.transpose(-1, -2)", _last(lambda at: at.extent(-2)), _matrices),
    Op("gram_of_columns", "{x}.transpose(-1, -2) @ {x}", lambda at: (*at.shape[:-2], at.last, at.last), _matrices),
    Op("bmm", "torch.bmm({x}, {x}.transpose(1, 2))", _last(lambda at: at.c), _first_of(3)),
    Op("baddbmm", "torch.baddbmm({x}, {x} @ {x}.transpose(1, 2), {x}, beta=0.5)", when=_first_of(3)),
    Op("einsum", "torch.einsum('bij,bkj,kn->bin', {x}, {x}, {w:c,n})", _last(lambda at: at.n), _first_of(3)),
    Op("einsum_heads", "torch.einsum('bij,hjn->bhin', {x}, {w:2,last,n})", lambda at: (at.shape[0], 2, at.c, at.n), _first_of(3)),
    Op("bilinear", "F.bilinear({x}, {x}, {w:n,last,last})", _last(lambda at: at.n), lambda at: at.last <= 17 and at.n <= 17),
    Op("outer", "{x}.unsqueeze(-1) * {x}.unsqueeze(-2)", lambda at: (*at.shape, at.last), lambda at: at.last <= 17),
    Op("cdist", "torch.cdist({x}, {w:n,last})", _last(lambda at: at.n), lambda at: _matrices(at) and _wide(at)),
    Op("cdist_1", "torch.cdist({x}, {x}, p=1)", _last(lambda at: at.extent(-2)), lambda at: _matrices(at) and _wide(at)),
    Op("weight_mul", "{x} * {w:last}"),
    Op("weight_add", "{x} + {w:last}"),
    Op("prelu", "F.prelu({x}, {w:c})", when=lambda at: _first(at) and at.rank > 1 and at.c > 0),
    Op("glu", "F.glu({x}, {d})", _halved, _even),
]  # fmt: skip

_NORMS = [
    Op("layer_norm", "F.layer_norm({x}, ({last},), {w:last}, {w:last})"),
    Op("layer_norm_plain", "F.layer_norm({x}, ({last},))"),
    Op("layer_norm_2", "F.layer_norm({x}, {x}.shape[-2:])", when=_matrices),
    Op("rms_norm", "F.rms_norm({x}, ({last},), {w:last})"),
    Op("group_norm", "F.group_norm({x}, 1, {w:c}, {w:c})", when=lambda at: _first(at) and at.rank > 2 and at.c > 0),
    Op("group_norm_2", "F.group_norm({x}, 2)", when=lambda at: _first(at) and at.rank > 2 and at.c % 2 == 0),
    Op("instance_norm", "F.instance_norm({x})", when=lambda at: _room(2)(at)),
    Op("batch_norm", "F.batch_norm({x}, {w:c}, {w:c}.abs() + 0.5, {w:c}, {w:c})", when=lambda at: _first(at) and at.rank > 1 and at.c > 0),
    Op("local_response", "F.local_response_norm({x}, 2)", when=lambda at: _room(1)(at) and _wide(at)),
]  # fmt: skip

_ATTENTION = [
    Op("attention", "F.scaled_dot_product_attention({x}, {x}, {x})", when=_matrices),
    Op("causal", "F.scaled_dot_product_attention({x}, {x}, {x}, is_causal=True)", when=_matrices),
    Op("attention_bias", "F.scaled_dot_product_attention({x}, {x}, {x} * 2, attn_mask={w:c,c})", when=_first_of(3)),
    Op("attention_mask", "F.scaled_dot_product_attention({x}, {x}, {x}, attn_mask={x}.sum(-1).unsqueeze(-2) > 0)", when=_matrices),
    Op("cross_attention", "F.scaled_dot_product_attention({x}, {w:n,last}.expand({x}.shape[0], -1, -1), {w:n,last}.expand({x}.shape[0], -1, -1))", when=_first_of(3)),
    Op("heads", "F.scaled_dot_product_attention(*(({x}.unflatten(-1, (2, -1)).transpose(1, 2),) * 3)).transpose(1, 2).flatten(2)", when=lambda at: _first_of(3)(at) and at.last % 2 == 0),
    Op("by_hand", "(({x} @ {x}.transpose(-1, -2)) / {last} ** 0.5).softmax(-1) @ {x}", when=_matrices),
    Op("mha", "{m:nn.MultiheadAttention(last, 1, batch_first=True)}({x}, {x}, {x}, need_weights=False)[0]", when=_first_of(3)),
    Op("mha_weights", "{m:nn.MultiheadAttention(last, 1, batch_first=True)}({x}, {x}, {x})[1]", _last(lambda at: at.c), _first_of(3)),
    Op("encoder_layer", "{m:nn.TransformerEncoderLayer(last, 1, n, batch_first=True)}({x})", when=_first_of(3)),
    Op("gru", "{m:nn.GRU(last, n, batch_first=True)}({x})[0]", _last(lambda at: at.n), lambda at: _first_of(3)(at) and at.c <= 9),
    Op("lstm", "{m:nn.LSTM(last, n, batch_first=True, bidirectional=True)}({x})[0]", _last(lambda at: 2 * at.n), lambda at: _first_of(3)(at) and at.c <= 9),
    Op("rnn", "{m:nn.RNN(last, n, batch_first=True)}({x})[1].transpose(0, 1)", lambda at: (at.shape[0], 1, at.n), lambda at: _first_of(3)(at) and at.c <= 9),
]  # fmt: skip

_WINDOWS = [
    Op("conv1d", "F.conv1d({x}, {w:n,c,3}, {w:n}, padding=1)", _channels(lambda at: at.n), _first_of(3)),
    Op("conv1d_stride", "F.conv1d({x}, {w:n,c,3}, stride=2, padding=1)", _channels(lambda at: at.n, lambda at, n: (n + 1) // 2), _first_of(3)),
    Op("conv1d_dilated", "F.conv1d({x}, {w:n,c,3}, {w:n}, padding=2, dilation=2)", _channels(lambda at: at.n), _first_of(3)),
    Op("depthwise", "F.conv1d({x}, {w:c,1,3}, {w:c}, padding=1, groups={c})", when=_first_of(3)),
    Op("conv_transpose1d", "F.conv_transpose1d({x}, {w:c,n,2}, {w:n}, stride=2)", _channels(lambda at: at.n, lambda at, n: 2 * n), _first_of(3)),
    Op("conv2d", "F.conv2d({x}, {w:n,c,3,3}, {w:n}, padding=1)", _channels(lambda at: at.n), lambda at: _first_of(4)(at) and at.n <= 33),
    Op("conv2d_1", "F.conv2d({x}, {w:n,c,1,1})", _channels(lambda at: at.n), _first_of(4)),
    Op("conv2d_depthwise", "F.conv2d({x}, {w:c,1,3,3}, {w:c}, padding=1, groups={c})", when=_first_of(4)),
    Op("conv_transpose2d", "F.conv_transpose2d({x}, {w:c,k,2,2}, stride=2)", _channels(lambda at: at.k, lambda at, n: 2 * n), _first_of(4)),
    Op("avg_pool1d", "F.avg_pool1d({x}, 2)", _channels(lambda at: at.c, lambda at, n: n // 2), _first_of(3)),
    Op("avg_pool1d_pad", "F.avg_pool1d({x}, 3, 1, 1)", when=_first_of(3)),
    Op("max_pool1d", "F.max_pool1d({x}, 2, ceil_mode=True)", _channels(lambda at: at.c, lambda at, n: (n + 1) // 2), _first_of(3)),
    Op("adaptive_avg", "F.adaptive_avg_pool1d({x}, {k})", _channels(lambda at: at.c, lambda at, n: at.k), _first_of(3)),
    Op("adaptive_max", "F.adaptive_max_pool1d({x}, {k})", _channels(lambda at: at.c, lambda at, n: at.k), _first_of(3)),
    Op("lp_pool", "F.lp_pool1d({x}, 2, 2)", _channels(lambda at: at.c, lambda at, n: n // 2), _first_of(3)),
    Op("avg_pool2d", "F.avg_pool2d({x}, 2)", _channels(lambda at: at.c, lambda at, n: n // 2), _first_of(4)),
    Op("max_pool2d", "F.max_pool2d({x}, 3, 1, 1)", when=_first_of(4)),
    Op("global_pool", "F.adaptive_avg_pool2d({x}, 1)", _channels(lambda at: at.c, lambda at, n: 1), _first_of(4)),
    Op("nearest", "F.interpolate({x}, scale_factor=2, mode='nearest')", _channels(lambda at: at.c, lambda at, n: 2 * n), _first_of(3, 4)),
    Op("bilinear_2", "F.interpolate({x}, scale_factor=2, mode='bilinear')", _channels(lambda at: at.c, lambda at, n: 2 * n), lambda at: _first_of(4)(at) and _wide(at)),
    Op("reflect", "F.pad({x}, (1, 1), mode='reflect')", _last(lambda at: at.last + 2), lambda at: _first_of(3)(at) and at.last > 1),
    Op("replicate", "F.pad({x}, (1, 2), mode='replicate')", _last(lambda at: at.last + 3), _first_of(3)),
    Op("im2col", "F.unfold({x}, 2)", lambda at: (at.shape[0], at.c * 4, _positive((at.extent(2) - 1) * (at.last - 1))), _first_of(4)),
    Op("grid_sample", "F.grid_sample({x}, torch.tanh({x}[:, :2].permute(0, 2, 3, 1)), align_corners=False)", when=lambda at: _first_of(4)(at) and at.c > 1 and _wide(at)),
]  # fmt: skip

_SELECTIONS = [
    Op("topk", "{x}.topk({k}, dim={d}).values", lambda at: at.replaced(at.d, at.k), lambda at: at.size >= at.k),
    Op("quantile", "{x}.quantile(0.3, dim={d})", _removed, _wide),
    Op("mean_2", "{x}.mean(({d}, {e}))", lambda at: tuple(x for d, x in enumerate(at.shape) if d not in (at.d, at.e))),
    Op("sum_2", "{x}.sum(({d}, {e}), keepdim=True)", lambda at: tuple(1 if d in (at.d, at.e) else x for d, x in enumerate(at.shape))),
    Op("amax_kept", "{x}.amax({d}, keepdim=True)", _kept),
    Op("mean_kept", "{x}.mean({d}, keepdim=True)", _kept),
    Op("lse_2", "{x}.logsumexp(({d}, {e}))", lambda at: tuple(x for d, x in enumerate(at.shape) if d not in (at.d, at.e))),
    Op("embedding", "F.embedding(ids({x}, 11), {w:11,n})", lambda at: (*at.shape, at.n)),
    Op("bag", "F.embedding_bag(ids({x}, 11), {w:11,n}, mode='mean')", _last(lambda at: at.n), _first_of(2)),
    Op("bag_sum", "F.embedding_bag(ids({x}, 11), {w:11,n}, mode='sum')", _last(lambda at: at.n), _first_of(2)),
    Op("bucketize", "torch.bucketize({x}, torch.tensor([-1.0, 0.0, 1.0])).to({x}.dtype)", when=lambda at: at.dtype == "float32"),
    Op("experts", "({x}.softmax(-1).topk(1, -1).values * {x}).relu()", when=lambda at: at.last > 0),
]  # fmt: skip

_RARE = [
    Op("to_bf16", "{x}.to(torch.bfloat16)", dtype="bfloat16"),
    Op("to_fp16", "{x}.clamp(-100, 100).to(torch.float16)", dtype="float16"),
    Op("to_fp32", "{x}.float()", dtype="float32"),
    Op("to_fp64", "{x}.double()", dtype="float64"),
    Op("graph_break", "broken({x})", when=_batched),
    Op("outside", "outside({x})", when=lambda at: _batched(at) and at.rank > 1),
    Op("vmap", "torch.vmap(lambda row: row.softmax(-1) * row.sum())({x})", when=lambda at: _batched(at) and at.rank > 1),
    Op("rfft", "torch.fft.rfft({x}, dim={d}).abs()", lambda at: at.replaced(at.d, at.size // 2 + 1), _wide),
    Op("complex", "torch.view_as_real(torch.polar({x}.abs(), {x}) * torch.polar({x}.abs(), -{x} / 2)).sum(-1)", when=_wide),
    Op("solve", "torch.linalg.solve({x}.tanh() / {last} + torch.eye({last}), {x})", when=lambda at: _matrices(at) and at.last == at.extent(-2) and at.dtype == "float32"),
    Op("bessel", "torch.special.i1({x}.clamp(-3, 3))", when=_wide),
]  # fmt: skip


OPS: dict[str, Op] = {
    op.name: op
    for op in itertools.chain(
        _table(POINTWISE),
        _table(REDUCED, becomes=_removed),
        _table(ALONG, when=lambda at: at.size > 0),
        _table(BINARY, becomes=_with_y),
        _MOVEMENT,
        _PRODUCTS,
        _NORMS,
        _SELECTIONS,
        _ATTENTION,
        _WINDOWS,
        _RARE,
    )
}
"""Name -> op, the simple ones first: failing models shrink towards them."""
