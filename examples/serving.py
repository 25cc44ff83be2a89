"""Continuous batching in its simplest form: requests come and go, the batch is whoever is there.

Everything that a server may decide is decided at random: how many requests run together, who arrives with
whom, how a prompt is cut into chunks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from decoder import Cache, Decoder

from bi_compile.sampling import sample

MOST_TOGETHER = 4
"""Requests prefilled together at most."""

Forward = Callable[[torch.Tensor, torch.Tensor, Cache], torch.Tensor]


@dataclass
class Request:
    """A prompt, how many tokens it asks for, and what it has got so far.

    seed: of its sampling. watched: its logits are kept, one row [vocabulary] for each token.
    """

    prompt: list[int]
    new_tokens: int
    seed: int = 0
    watched: bool = False
    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= self.new_tokens


class Server:
    """Runs requests through `forward`, which is `model` compiled or as it is.

    slots: requests that run together at most. regime: of so many tokens, about, is a calm or a busy time.
    """

    def __init__(
        self,
        model: Decoder,
        forward: Forward,
        *,
        slots: int,
        regime: int,
        temperature: float,
        draw: random.Random,
    ) -> None:
        self._forward = forward
        self._cache = model.empty_cache(slots)
        self._arrivals = model.empty_cache(MOST_TOGETHER)
        self._slots = slots
        self._regime = regime
        self._temperature = temperature
        self._draw = draw
        self._active: list[Request] = []
        self.calls: dict[int, int] = {}
        """Batch size of the calls of one token a row -> how many there were."""

    def run(self, requests: Sequence[Request], tick: Callable[[Request], None]) -> None:
        """Until all are finished, in about their order; tick(request) when one is."""
        waiting = list(requests)[::-1]
        wanted, lasts = self._slots, 0
        while waiting or self._active:
            if lasts <= 0:
                # Calm and busy times alike: as many tokens with 1 request or 2 as with 16 to 32.
                wanted = min(self._slots, int(2 ** self._draw.uniform(0, 5)))
                lasts = self._draw.randint(5 * self._regime // 6, 5 * self._regime)
            if len(self._active) <= wanted:
                lasts -= max(1, len(self._active))
            while waiting and len(self._active) < wanted:
                self._admit(waiting, min(self._draw.randint(1, MOST_TOGETHER), wanted - len(self._active)))
            self._step()
            for slot in reversed(range(len(self._active))):
                if self._active[slot].finished:
                    tick(self._active[slot])
                    self._leave(slot)

    def _admit(self, waiting: list[Request], most: int) -> None:
        """The next requests whose prompts have one length take the free slots and are prefilled in chunks."""
        newcomers = [waiting.pop()]
        while waiting and len(newcomers) < most and len(waiting[-1].prompt) == len(newcomers[0].prompt):
            newcomers.append(waiting.pop())
        prompts = torch.tensor([request.prompt for request in newcomers])
        begin, logits = 0, None
        while begin < prompts.shape[1]:
            end = min(prompts.shape[1], begin + self._draw.randint(1, 24))
            positions = torch.arange(begin, end).expand(len(newcomers), -1)
            logits = self._call(prompts[:, begin:end], positions, self._arrivals)
            begin = end
        assert logits is not None
        for (keys, values), (new_keys, new_values) in zip(self._cache, self._arrivals, strict=True):
            slots = slice(len(self._active), len(self._active) + len(newcomers))
            keys[slots], values[slots] = new_keys[: len(newcomers)], new_values[: len(newcomers)]
        self._active += newcomers
        self._take(newcomers, logits[:, -1])

    def _step(self) -> None:
        """One token for everybody."""
        running = [request for request in self._active if not request.finished]
        if len(running) < len(self._active):
            return  # somebody was finished by his prefill and has not left yet
        ids = torch.tensor([[request.tokens[-1]] for request in running])
        at = torch.tensor([[len(request.prompt) + len(request.tokens) - 1] for request in running])
        self.calls[len(running)] = self.calls.get(len(running), 0) + 1
        self._take(running, self._call(ids, at, self._cache)[:, -1])

    def _call(self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        """The first rows of a cache. Contiguous inputs spare compilations for each stride."""
        rows = len(ids)
        return self._forward(
            ids.contiguous(), positions.contiguous(), [(k[:rows], v[:rows]) for k, v in cache]
        )

    def _take(self, requests: list[Request], logits: torch.Tensor) -> None:
        if self._temperature == 0:
            tokens = logits.argmax(-1)
        else:
            seeds = [request.seed for request in requests]
            positions = [len(request.tokens) for request in requests]
            tokens = sample(logits, seeds, positions, temperature=self._temperature)
        for request, token, row in zip(requests, tokens.tolist(), logits, strict=True):
            request.tokens.append(token)
            if request.watched:
                request.logits.append(row.clone())

    def _leave(self, slot: int) -> None:
        last = len(self._active) - 1
        for keys, values in self._cache:
            keys[slot], values[slot] = keys[last], values[last]
        self._active[slot] = self._active[last]
        self._active.pop()
