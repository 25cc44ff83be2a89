"""Custom ops that the user vouches for: each treats every sample by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_allowed: dict[str, "Allowed"] = {}


@dataclass(frozen=True)
class Allowed:
    """batch_dims: of the op's tensor arguments, in order; results: of its results."""

    batch_dims: int | tuple[int | None, ...]
    results: int


def allow(
    op: torch._ops.OpOverload | torch._ops.OpOverloadPacket,
    *,
    batch_dims: int | Sequence[int | None] = 0,
    result_dim: int = 0,
) -> None:
    """Vouch that a custom op computes every sample from that sample alone.

    The op is then run sample by sample, so that its results cannot depend on the batch whatever its kernel
    does; if it mixes samples, its results change. Takes effect for graphs compiled afterwards.

    op: such as torch.ops.mylib.myop, or one overload of it.
    batch_dims: the batch dim of all its tensor arguments, or one for each; None for one that all samples
        share.
    result_dim: the batch dim of its results.
    """
    overload = op.default if isinstance(op, torch._ops.OpOverloadPacket) else op
    dims = batch_dims if isinstance(batch_dims, int) else tuple(batch_dims)
    _allowed[str(overload)] = Allowed(dims, result_dim)


def allowed(op: object) -> Allowed | None:
    """What was vouched for an op, or None."""
    return _allowed.get(str(op))


def fingerprint() -> str:
    """All that was allowed, for cache keys."""
    return str(sorted((name, str(entry)) for name, entry in _allowed.items()))
