"""What a function returns for a batch, and one sample's part of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bi_compile.testing.batches import Batch, Pool
from bi_compile.testing.messages import VacuousCheckError
from bi_compile.testing.trees import leaves

Outputs = dict[str, torch.Tensor]


def call(fn: Callable[..., Any], pool: Pool, batch: Batch) -> tuple[Outputs, tuple[str, ...]]:
    """The tensors fn returns, copied at once (a later call may reuse their memory), and what is no tensor."""
    return copied(apply(fn, pool.take(batch)))


def apply(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """fn(*inputs); a TypeError says more where the inputs came as one tuple, list or mapping."""
    try:
        return fn(*inputs)
    except (TypeError, AttributeError) as error:
        if len(inputs) != 1 or not isinstance(inputs[0], tuple | list | Mapping):
            raise
        raise TypeError(
            f"fn was given one {type(inputs[0]).__name__} as its only argument, and raised "
            f"{type(error).__name__}: {error}. "
            "Inputs are passed one by one: assert_batch_invariant(fn, x, y); "
            "for keyword arguments: assert_batch_invariant(lambda x, y: fn(x=x, y=y), x, y)"
        ) from error


def copied(returned: Any) -> tuple[Outputs, tuple[str, ...]]:
    outputs: Outputs = {}
    ignored: list[str] = []
    for path, leaf in leaves(returned, "output"):
        if isinstance(leaf, torch.Tensor):
            outputs[path] = leaf.detach().clone()
        elif leaf is not None:
            ignored.append(path)
    return outputs, tuple(ignored)


def batch_dims_of_outputs(run: Callable[[Batch], Outputs], pool: Pool, alone: Outputs) -> dict[str, int]:
    """The dimension of each output that is proportional to the batch, probed with copies of one sample."""
    two, three = run(pool.alone(0, copies=2)), run(pool.alone(0, copies=3))
    dims: dict[str, int] = {}
    for name, one in alone.items():
        shapes = [one.shape, *(o[name].shape if name in o else () for o in (two, three))]
        if len({len(shape) for shape in shapes}) == 1:
            grows = [
                d for d, n in enumerate(one.shape) if n and shapes[1][d] == 2 * n and shapes[2][d] == 3 * n
            ]
            if grows:
                dims[name] = grows[0]
                continue
        raise VacuousCheckError(
            f"{name} has no dimension that grows with the batch",
            details=[f"shapes for 1, 2 and 3 samples: {', '.join(str(tuple(s)) for s in shapes)}"],
            hint="return only results of single samples; a value of the whole batch, such as a mean loss, "
            "depends on it by definition.",
        )
    return dims


def row_of(
    pool: Pool,
    output: torch.Tensor | None,
    dim: int,
    *,
    position: int,
    batch: Batch,
    expected: torch.Tensor,
) -> torch.Tensor | None:
    """The part of a batch's output that belongs to one position, without its padding; None if it has none."""
    if output is None or output.dim() != expected.dim() or output.shape[dim] % len(batch.members):
        return None
    extent = output.shape[dim] // len(batch.members)
    row = output.narrow(dim, position * extent, extent)
    if pool.padding is not None and batch.length is not None:
        row = pool.padding.trim(row, batch.members[position], alone=expected.shape, length=batch.length)
    return row


def shown(value: torch.Tensor) -> str:
    """One element, with enough digits to tell two neighbours apart."""
    narrow = value.is_floating_point() and value.dtype != torch.float64
    return f"{value.item():.9g}" if narrow else repr(value.item())


def apart(distance: torch.Tensor) -> str:
    d = float(distance)
    return "" if d != d else f" ({d:.0f} ulp{'s' * (d != 1)} apart)"
