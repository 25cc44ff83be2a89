"""Every sentence alone, then in batches: how many embeddings change a bit, and how long it takes."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from minilm import MAX_TOKENS, padded

Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
BUCKET = 8

MODES = {
    "fixed": "to 64 tokens",
    "longest": "to the longest of the batch",
    "bucketed": f"in buckets of {BUCKET} lengths",
}


@dataclass
class Result:
    """One arm in one padding mode.

    changed: sentences whose embedding alone and in some batch differ in a bit.
    neighbours: sentences whose nearest other sentence differs between some batching and one by one.
    rankings: sentences for which the order of all other sentences by similarity differs.
    largest: largest absolute difference of an embedding's element.
    seconds: median time per sentence in a batch.
    seconds_alone: median time per sentence alone.
    ratios, ratios_alone: the same batches' times divided by those of stock Inductor; median.
    """

    changed: int
    neighbours: int
    rankings: int
    largest: float
    seconds: float
    seconds_alone: float
    ratio: float | None = None
    ratio_alone: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass
class Measured:
    result: Result
    alone: torch.Tensor
    """Embeddings one by one, [sentences, 384]."""


def batches(tokens: Sequence[list[int]], size: int, mode: str, seed: int = 0) -> list[list[int]]:
    """All sentences in random order, cut into batches of `size`; bucketed: each bucket on its own."""
    order = list(range(len(tokens)))
    random.Random(f"{seed}-{size}").shuffle(order)
    groups = {0: order}
    if mode == "bucketed":
        groups = {}
        for i in order:
            groups.setdefault(_bucket(len(tokens[i])), []).append(i)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def length_for(tokens: list[list[int]], mode: str) -> int:
    longest = max(len(t) for t in tokens)
    return {"fixed": MAX_TOKENS, "longest": longest, "bucketed": _bucket(longest)}[mode]


def calls(count: int, tokens: Sequence[list[int]], sizes: Sequence[int], modes: Sequence[str]) -> int:
    """How many embedding calls `measure` makes for `count` arms."""
    per_mode = [len(tokens) + sum(len(batches(tokens, size, mode)) for size in sizes) for mode in modes]
    return count * sum(per_mode)


def measure(
    arms: dict[str, Embed],
    tokens: Sequence[list[int]],
    *,
    sizes: Sequence[int],
    modes: Sequence[str],
    tick: Callable[[str, str], None],
) -> dict[str, dict[str, Measured]]:
    """Results by mode and arm. Arms take turns on every batch, so that noise of the machine hits all alike.

    tick: told the mode and the arm after each call.
    """
    return {mode: _measure_mode(arms, tokens, sizes, mode, tick) for mode in modes}


def _measure_mode(arms, tokens, sizes, mode, tick) -> dict[str, Measured]:
    _warm_up(arms, tokens, sizes, mode)
    singles = [[i] for i in range(len(tokens))]
    alone, times_alone = _embed_all(arms, tokens, singles, mode, tick)
    changed = {arm: torch.zeros(len(tokens), dtype=torch.bool) for arm in arms}
    neighbours = {arm: changed[arm].clone() for arm in arms}
    rankings = {arm: changed[arm].clone() for arm in arms}
    largest = dict.fromkeys(arms, 0.0)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for size in sizes:
        together, seconds = _embed_all(arms, tokens, batches(tokens, size, mode), mode, tick)
        for arm in arms:
            times[arm] += seconds[arm]
            changed[arm] |= (together[arm].view(torch.int32) != alone[arm].view(torch.int32)).any(1)
            largest[arm] = max(largest[arm], float((together[arm] - alone[arm]).abs().max()))
            before, after = _ranking(alone[arm]), _ranking(together[arm])
            neighbours[arm] |= before[:, 0] != after[:, 0]
            rankings[arm] |= (before != after).any(1)
    measured = {}
    for arm in arms:
        result = Result(
            int(changed[arm].sum()),
            int(neighbours[arm].sum()),
            int(rankings[arm].sum()),
            largest[arm],
            statistics.median(times[arm]),
            statistics.median(times_alone[arm]),
        )
        if "inductor" in arms:
            result.ratio = _median_ratio(times[arm], times["inductor"])
            result.ratio_alone = _median_ratio(times_alone[arm], times_alone["inductor"])
        measured[arm] = Measured(result, alone[arm])
    return measured


def _embed_all(arms, tokens, groups, mode, tick) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Embeddings of all sentences in the given batches, and seconds per sentence of each batch."""
    vectors = {arm: torch.full((len(tokens), 384), torch.nan) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn, group in enumerate(groups):
        members = [tokens[i] for i in group]
        inputs = padded(members, length_for(members, mode))
        for arm in random.Random(turn).sample(list(arms), len(arms)):
            start = time.perf_counter()
            output = arms[arm](*inputs)
            seconds[arm].append((time.perf_counter() - start) / len(group))
            vectors[arm][group] = output
            tick(mode, arm)
    return vectors, seconds


def _warm_up(arms, tokens, sizes, mode) -> None:
    """Compile outside the measured time: the shapes that make Dynamo compile again come first."""
    for size in (1, *sizes[:2], sizes[-1]):
        for group in batches(tokens, size, mode)[:3]:
            members = [tokens[i] for i in group]
            inputs = padded(members, length_for(members, mode))
            for embed in arms.values():
                embed(*inputs)


def _ranking(vectors: torch.Tensor) -> torch.Tensor:
    """For each sentence all sentences from nearest to farthest, in float64 so that only the vectors count."""
    similar = vectors.double() @ vectors.double().T
    return similar.fill_diagonal_(-torch.inf).sort(dim=1, descending=True, stable=True).indices


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _bucket(length: int) -> int:
    return -(-length // BUCKET) * BUCKET
