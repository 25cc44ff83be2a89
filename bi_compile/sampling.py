"""Sampling: a token depends on its request's seed and stream, its position and its row of logits alone.

The random numbers come from a counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011), keyed by the seed and counted by stream, position and token. So draws have no order, and
neither the batch nor what was drawn before enters one. A token is the argmax of logits / temperature + Gumbel
noise (the Gumbel-max trick), which draws from softmax(logits / temperature).
"""

from collections.abc import Sequence

import torch

from bi_compile.eager_mode import eager

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_ROUNDS = 10

Tensor = torch.Tensor


def sample(
    logits: Tensor,
    seeds: Tensor | Sequence[int],
    positions: Tensor | Sequence[int] | int,
    *,
    streams: Tensor | Sequence[int] | int = 0,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
) -> Tensor:
    """One token for each row of logits.

    logits: [B, V], of any floating dtype; -inf is never drawn. seeds: [B], any int64. positions: [B] or one
    for all: the index of the token in its request. streams: [B] or one for all: which of several samples of a
    request. Different seeds, streams or positions share no noise; the latter are 0 or more, below 2^32.
    temperature, top_k, top_p: one for all rows or a tensor [B]. Temperature 0 takes the first largest logit.
    As elsewhere, top_k keeps the k largest (the lower index first among equals), then top_p the fewest of
    these, largest first, whose probabilities reach p; the largest is always kept.
    Returns [B] int64. Raises ValueError for shapes that do not fit, settings out of range, seeds, positions
    and streams that are no integers, and rows whose largest logit is not finite: NaN, inf, -inf alone.
    """
    if logits.dim() != 2:
        raise ValueError(f"sample: logits are [batch, vocabulary], got {list(logits.shape)}")
    batch, vocabulary = logits.shape
    device = logits.device
    seeds = _column("seeds", seeds, batch, torch.int64, device)
    positions = _column("positions", positions, batch, torch.int64, device)
    streams = _column("streams", streams, batch, torch.int64, device)
    for name, column in (("positions", positions), ("streams", streams)):
        _check(name, column, (column >= 0) & (column <= _LOW), "at least 0 and below 2^32")
    temperature = _column("temperature", temperature, batch, torch.float64, device)
    _check("temperature", temperature, temperature >= 0, "at least 0")
    largest = logits.detach().amax(-1)
    if not bool(largest.isfinite().all()):
        row = int((~largest.isfinite()).nonzero()[0])
        raise ValueError(
            f"sample: the largest logit of a row must be finite, got {largest[row].item()} in row {row}"
        )
    greedy = temperature == 0
    uniform = _uniform(seeds, streams, positions, vocabulary)
    with eager():
        scores = logits.double() / torch.where(greedy, 1.0, temperature)
        if top_k is not None or top_p is not None:
            scores = scores.masked_fill(~_kept(scores, top_k, top_p), -torch.inf)
        drawn = (scores - (-uniform.log()).log()).argmax(-1)
        return torch.where(greedy.squeeze(1), logits.argmax(-1), drawn)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words to four random words.

    int64 tensors below 2^32, broadcast against each other.
    """
    a, b, c, d = counter
    k, m = key
    for _ in range(_ROUNDS):
        (high_a, low_a), (high_c, low_c) = _product(a, _MULTIPLIERS[0]), _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ m, low_a
        k, m = k + _WEYL[0] & _LOW, m + _WEYL[1] & _LOW
    return a, b, c, d


def _product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of x times a 32-bit number, in halves of it so that int64 does not overflow."""
    high, low = x * (multiplier >> 16), x * (multiplier & 0xFFFF)
    return high + (low >> 16) >> 16, low + ((high & 0xFFFF) << 16) & _LOW


def _uniform(seeds: Tensor, streams: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """[B, V] in fp64, above 0 and below 1: each word of a Philox block is the number of one token.

    Integers and products with powers of two alone, so exact in any order.
    """
    block = torch.arange((vocabulary + 3) // 4, device=seeds.device)
    words = philox((block, positions, streams, torch.zeros_like(block)), (seeds & _LOW, seeds >> 32 & _LOW))
    return (torch.stack(words, -1).flatten(1)[:, :vocabulary].double() + 0.5) * 2.0**-32


def _kept(scores: Tensor, top_k: int | Tensor | None, top_p: float | Tensor | None) -> Tensor:
    """Which tokens may be drawn, [B, V]."""
    batch, vocabulary = scores.shape
    ordered, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    rank = torch.arange(vocabulary, device=scores.device)
    kept = torch.ones_like(scores, dtype=torch.bool)
    if top_k is not None:
        k = _column("top_k", top_k, batch, torch.int64, scores.device)
        _check("top_k", k, k >= 1, "at least 1")
        kept = rank < k
    if top_p is not None:
        p = _column("top_p", top_p, batch, torch.float64, scores.device)
        _check("top_p", p, (p > 0) & (p <= 1), "above 0 and at most 1")
        chances = ordered.masked_fill(~kept, -torch.inf).softmax(-1)
        before = chances.cumsum(-1) - chances
        kept = kept & ((before < p) | (rank == 0))
    return torch.zeros_like(kept.expand_as(scores)).scatter(-1, order, kept.expand_as(scores))


def _column(
    name: str, value: Tensor | Sequence[int] | float, batch: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    column = torch.as_tensor(value, device=device)
    if dtype == torch.int64 and column.numel() and (column.is_floating_point() or column.is_complex()):
        raise ValueError(f"sample: {name} must be integers, got {column.flatten()[0].item()}")
    column = column.to(dtype).reshape(-1, 1)
    if len(column) not in (1, batch):
        raise ValueError(f"sample: {name} has {len(column)} entries for {batch} rows of logits")
    return column.expand(batch, 1)


def _check(name: str, value: Tensor, holds: Tensor, wanted: str) -> None:
    if not bool(holds.all()):
        raise ValueError(f"sample: {name} must be {wanted}, got {value[~holds][0].item()}")
