"""Hypothesis strategies: tensors that show a change of summation order, and batches of samples.

    from bi_compile.testing.strategies import batches, tensors

    @given(x=tensors((8, 301)), members=batches(8))
    def test_rows(x, members): ...

The only module of the kit that imports hypothesis. The values of a tensor follow from a drawn kind and seed,
not element by element, so that large ones are cheap: examples shrink to small shapes and plain layouts.
"""

import itertools
from collections.abc import Sequence

import torch

from bi_compile.testing.decoders import CACHES, FAMILIES, Decoder
from bi_compile.testing.grammar import OPS
from bi_compile.testing.layouts import LAYOUTS
from bi_compile.testing.padding import Pad, Side
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.values import EXPONENTS, KINDS

try:
    from hypothesis import strategies as st
except ImportError as missing:
    raise ImportError("bi_compile.testing.strategies needs hypothesis: pip install hypothesis") from missing


def extents(max_value: int = 300) -> st.SearchStrategy[int]:
    """Sizes of one dimension, 1 to max_value: small ones, and those next to the widths kernels like."""
    edges = [n for power in range(3, 15) for n in (2**power - 1, 2**power, 2**power + 1) if n <= max_value]
    return st.one_of(st.integers(1, min(max_value, 19)), st.sampled_from(edges or [max_value]))


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: Sequence[int | st.SearchStrategy[int]] | None = None,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    values: Sequence[str] = ("normal", "cancelling", "wide", "subnormal"),
    layouts: Sequence[str] = ("contiguous", "transposed", "offset", "strided", "cut out"),
    nan: bool = False,
    inf: bool = False,
    device: str = "cpu",
) -> torch.Tensor:
    """Floating-point tensors whose bits depend on the order of evaluation.

    shape: extents, each a number or a strategy of them (`extents()`); None draws 1 to 3 of them.
    dtypes: fp16, bf16, fp32, fp64; one is drawn.
    values: kinds to draw from; `bi_compile.testing.values.values` tells what they are.
    layouts: "contiguous", "transposed" (dimensions reversed in memory), "offset" (a view that starts at an
        odd address), "strided" (every second element of memory), "cut out" (rows of a wider tensor). What
        lies in memory beside the view is NaN, so that reading it shows.
    nan, inf: whether some examples hold NaN, or infinities of both signs. Without them all values are finite.
    """
    for what, given, known in (("values", values, KINDS), ("layouts", layouts, LAYOUTS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{what} {unknown} unknown; there are {list(known)}")
    if foreign := [dtype for dtype in dtypes if dtype not in EXPONENTS]:
        raise ValueError(f"dtypes {foreign} not supported; there are {list(EXPONENTS)}")
    wanted = draw(st.lists(extents(), min_size=1, max_size=3)) if shape is None else shape
    size = [n if isinstance(n, int) else draw(n) for n in wanted]
    dtype = draw(st.sampled_from(list(dtypes)))
    kind = draw(st.sampled_from(list(values)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    x = KINDS[kind](torch.empty(size, dtype=torch.float64), dtype, generator).to(dtype)
    for wished, special in ((nan, torch.nan), (inf, torch.inf), (inf, -torch.inf)):
        if wished and x.numel() and draw(st.booleans()):
            some = torch.rand(x.shape, generator=generator) < 0.02
            some.view(-1)[torch.randint(x.numel(), (), generator=generator)] = True
            x = x.masked_fill(some, special)
    return LAYOUTS[draw(st.sampled_from(list(layouts)))](x.to(device))


def batches(
    samples: int, *, max_size: int = 33, min_size: int = 1, repeats: bool = True
) -> st.SearchStrategy[tuple[int, ...]]:
    """Which of a pool's samples share a batch, in which order: tuples of their numbers.

    repeats: whether a sample may stand in a batch more than once; without, max_size is at most `samples`.
    """
    limit = max_size if repeats else min(max_size, samples)
    if not 0 < min_size <= limit:
        raise ValueError(f"no batch of {samples} samples has {min_size} to {limit} members")
    members = st.lists(st.integers(0, samples - 1), min_size=min_size, max_size=limit, unique=not repeats)
    return members.map(tuple)


def cuts(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Sizes of the pieces into which a whole of `length` is cut: they add up to it. Shrink to one piece."""
    places = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return places.map(lambda chosen: _pieces([0, *sorted(chosen), length]))


@st.composite
def partitions(draw: st.DrawFn, samples: int) -> tuple[tuple[int, ...], ...]:
    """All samples, each in one of several batches, in any order: tuples of their numbers.

    Shrink to one batch in the order of the pool.
    """
    order = draw(st.permutations(range(samples)))
    begin, parts = 0, []
    for size in draw(cuts(samples)):
        parts.append(tuple(order[begin : begin + size]))
        begin += size
    return tuple(parts)


@st.composite
def paddings(
    draw: st.DrawFn,
    samples: int,
    length: int,
    *,
    sides: Sequence[Side] = ("right",),
    fills: Sequence[float | tuple[float, ...]] = (0.0,),
) -> Pad:
    """How the samples of a pool are padded: a `Pad`, the `padding` of `assert_batch_invariant`.

    length: of the pool; each sample gets one of 1 to it. sides: a mask must lie on the side that is drawn.
    fills: each a value for all inputs, or one per input, such as `(nan, 0)` for tokens and their mask.
    Shrink to samples of full length.
    """
    lengths = draw(st.tuples(*[st.integers(0, length - 1)] * samples))
    return Pad(
        lengths=tuple(length - cut for cut in lengths),
        side=draw(st.sampled_from(list(sides))),
        fill=draw(st.sampled_from(list(fills))),
    )


@st.composite
def neighbours(
    draw: st.DrawFn,
    sample: torch.Tensor,
    *,
    max_size: int = 17,
    constants: Sequence[float] = (0.0, 3e4, torch.inf, -torch.inf, torch.nan),
    values: Sequence[str] = ("normal", "cancelling", "wide", "subnormal"),
) -> tuple[torch.Tensor, int]:
    """A batch [n, *sample.shape] that holds the sample, and where: `batch[position]` has its bits.

    Each other row is a copy of the sample, nothing but one of the constants, or values of a kind. Of an
    integer sample, other rows hold its own elements in another order.
    Shrink to the sample alone, in place 0.
    """
    size = draw(st.integers(1, max_size))
    position = draw(st.integers(0, size - 1))
    seeds = st.integers(0, 2**16)
    kinds = st.one_of(st.just("copy"), st.sampled_from(list(constants)), st.sampled_from(list(values)))
    rows = [
        sample if row == position else _neighbour(sample, draw(kinds), draw(seeds)) for row in range(size)
    ]
    return torch.stack(rows), position


def _neighbour(sample: torch.Tensor, kind: str | float, seed: int) -> torch.Tensor:
    if kind == "copy":
        return sample
    generator = torch.Generator().manual_seed(seed)
    if not sample.is_floating_point():
        order = torch.randperm(sample.numel(), generator=generator).to(sample.device)
        return sample.flatten()[order].view(sample.shape)
    if isinstance(kind, str):
        shape = sample.shape or (1,)
        row = KINDS[kind](torch.empty(shape, dtype=torch.float64), sample.dtype, generator)
        return row.to(sample).view(sample.shape)
    return torch.full_like(sample, kind)


def _pieces(places: Sequence[int]) -> tuple[int, ...]:
    return tuple(end - begin for begin, end in itertools.pairwise(places))


@st.composite
def decoders(
    draw: st.DrawFn,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    max_length: int = 71,
) -> Decoder:
    """Random small decoders of transformers, with their prompts and how these are cut: see `check_decoder`.

    They differ in family, heads, sizes, windows, caches, lengths and pieces. Failing ones shrink to one head
    of two features and few tokens.
    families: model types, keys of `bi_compile.testing.decoders.FAMILIES`. dtypes: of the weights.
    max_length: of the longest prompt.
    Raises ValueError for a family that is not there.
    """
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families {unknown} unknown; there are {list(FAMILIES)}")
    kv_heads = draw(st.integers(1, 3))
    return Decoder(
        family=draw(st.sampled_from(list(families))),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_size=2 * draw(st.integers(1, 16)),
        layers=draw(st.integers(1, 2)),
        inner=draw(extents(130)),
        window=draw(st.sampled_from((None, 2, 3, 8, 33))),
        lengths=tuple(draw(st.lists(st.integers(1, max_length), min_size=1, max_size=5))),
        cuts=tuple(draw(st.lists(st.integers(1, 33), min_size=1, max_size=6))),
        cache=draw(st.sampled_from(CACHES)),
        dtype=str(draw(st.sampled_from(list(dtypes)))).removeprefix("torch."),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def models(
    draw: st.DrawFn,
    *,
    max_steps: int = 8,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    values: Sequence[str] = ("normal", "cancelling", "wide", "subnormal"),
    ops: Sequence[str] = tuple(OPS),
) -> RandomModel:
    """Random modules in evaluation mode in which no sample sees another, with their inputs.

    They are drawn as a list of steps; `bi_compile.testing.grammar` has a line for each op. A step may take in
    an earlier result, move the batch to another dimension, merge it with one, share a weight, change the
    dtype or break the graph. Failing models shrink to few steps, small sizes and simple ops.

    max_steps: the most that are drawn; those that do not fit the shape are left out.
    dtypes, values: of the input. ops: names of the grammar, the simple ones first.
    Raises ValueError for an op that the grammar does not have.
    """
    if unknown := [name for name in ops if name not in OPS]:
        raise ValueError(f"ops {unknown} unknown; there are {list(OPS)}")
    rank = draw(st.integers(1, 3))
    sizes = extents(130) if rank < 3 else st.sampled_from([1, 2, 3, 4, 5, 8, 9])
    shape = draw(st.tuples(*[sizes] * rank))
    # One draw for all six: a step of few draws is easily left out when a failing model shrinks.
    numbers = st.integers(0, 16**6 - 1).map(lambda n: tuple(n // 16**place % 16 for place in range(6)))
    steps = draw(st.lists(st.tuples(st.sampled_from(list(ops)), numbers), min_size=1, max_size=max_steps))
    dtype = str(draw(st.sampled_from(list(dtypes)))).removeprefix("torch.")
    return RandomModel.fitting(
        shape, steps, dtype=dtype, kind=draw(st.sampled_from(list(values))), seed=draw(st.integers(0, 9))
    )
