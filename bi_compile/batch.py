"""Where the batch lies in an input. The default is dim 0 of every input that is no parameter or buffer."""

from collections import Counter
from collections.abc import Sequence

import torch

Dims = tuple[tuple[int, ...], ...]
"""For each input of a graph the dims that hold a batch."""

_MARK = "_bi_compile_batch"


def mark_batch(x: torch.Tensor, dim: int | Sequence[int] | None) -> torch.Tensor:
    """Say where the batch lies in an input of a compiled function, and return the input.

    x: the tensor that will be passed; the mark belongs to this tensor object and is read while compiling.
    dim: the batch dim; several for several batches, such as (0, 1) for requests x samples; None for an
        input that all samples share, such as a mask [S, S] or a table of positions.
    Raises IndexError for a dim that x does not have.

    Without a mark dim 0 of every input that is no parameter or buffer holds the batch, where its size is that
    of most of the data. The marks tell the analysis what must not mix; they never change a bit.
    """
    dims = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    for d in dims:
        if not -x.dim() <= d < x.dim():
            raise IndexError(f"mark_batch: dim {d} is out of range for a tensor of {x.dim()} dims")
    setattr(x, _MARK, tuple(d % x.dim() for d in dims))
    return x


def marked(x: torch.Tensor) -> tuple[int, ...] | None:
    """The dims an input was marked with, or None."""
    return getattr(x, _MARK, None)


def batch_dims(inputs: Sequence[torch.Tensor | None]) -> Dims:
    """The batch dims of each input of a graph; None stands for a parameter, a buffer or a number."""
    own = [None if x is None else marked(x) for x in inputs]
    extents: Counter[int] = Counter()
    one_sample = _holds_one_sample(inputs)
    for x, dims in zip(inputs, own, strict=True):
        if x is None or not x.dim():
            continue
        if dims:
            # A mark outweighs every guess.
            extents[x.shape[dims[0]]] += 1 << 60
        elif dims is None and x.shape[0] != 1 and not (one_sample and _is_window(x)):
            extents[x.shape[0]] += x.numel()
    if not extents:
        return tuple(dims or () for dims in own)
    extent = extents.most_common(1)[0][0]
    guessed = ((0,) if x is not None and x.dim() and x.shape[0] == extent else () for x in inputs)
    return tuple(guess if dims is None else dims for dims, guess in zip(own, guessed, strict=True))


def _holds_one_sample(inputs: Sequence[torch.Tensor | None]) -> bool:
    """Whether all tensors of several dims have 1 for the first of them: if any batch, one of one sample."""
    first = {x.shape[0] for x in inputs if x is not None and x.dim() > 1}
    return first == {1}


def _is_window(x: torch.Tensor) -> bool:
    """Whether this may be a window or scales; vectors of integers are labels or lengths, one a sample."""
    return x.dim() == 1 and x.is_floating_point()
