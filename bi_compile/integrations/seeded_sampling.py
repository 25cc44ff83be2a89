"""`bi_compile.sampling.sample` within transformers: in `generate`, and in its continuous batching."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from bi_compile.sampling import sample

Tensor = torch.Tensor
Setting = float | Sequence[float] | Tensor | None


class SeededSampling(LogitsProcessor):
    """A logits processor for `generate(do_sample=False)` that draws as `bi_compile.sampling.sample` does.

    Put it last: it leaves the drawn token alone possible, which greedy search then takes. Settings that
    `generate` itself would apply (temperature, top_k, top_p) are given here.
    seeds: one for each prompt. For n samples repeat each prompt n times, next to one another: they are the
    streams 0 ... n-1 of its seed. (`num_return_sequences` asks for `do_sample=True`, whose draw is refused.)
    Positions count from the prompt. Called with anything but the text it saw last and one more token, it
    starts anew, so it serves any number of calls of `generate`; a finished text as a prompt is continued.
    Raises ValueError and TypeError for no seeds, seeds that are no integers and settings out of range.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        seeds: Sequence[int] | Tensor,
        *,
        temperature: Setting = 1.0,
        top_k: Setting = None,
        top_p: Setting = None,
    ) -> None:
        self._seeds = torch.tensor([operator.index(seed) for seed in seeds], dtype=torch.int64)
        if not len(self._seeds):
            raise ValueError("SeededSampling: no seeds; give one for each prompt")
        self._settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        _check(self._settings)
        self._prompt = 0
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, so far], scores [B, V]; B a multiple of the seeds. Returns [B, V]."""
        rows, requests = len(scores), len(self._seeds)
        if rows % requests:
            raise ValueError(f"SeededSampling: {requests} seeds do not divide {rows} rows of logits")
        if not self._goes_on(input_ids):
            # Padding on the left counts as prompt: only what comes after is counted.
            self._prompt = input_ids.shape[1]
        self._seen = input_ids
        each = rows // requests
        tokens = sample(
            scores,
            self._seeds.repeat_interleave(each),
            input_ids.shape[1] - self._prompt,
            streams=torch.arange(rows) % each,
            **self._settings,
        )
        return _alone(tokens, scores)

    def _goes_on(self, input_ids: Tensor) -> bool:
        """Whether the text is the last one and a token more. Guessed tokens may have been taken back."""
        before, length = self._seen, input_ids.shape[1]
        if before is None or len(before) != len(input_ids):
            return False
        if not self._prompt < length <= before.shape[1] + 1:
            return False
        return torch.equal(before[:, : length - 1], input_ids[:, : length - 1])


def seeded(
    manager: ContinuousBatchingManager,
    *,
    temperature: Setting = 1.0,
    top_k: Setting = None,
    top_p: Setting = None,
) -> ContinuousBatchingManager:
    """Let the requests of a manager, which has not been started, draw by seeds of their own; returns it.

        manager = seeded(model.init_continuous_batching(generation_config=greedy), temperature=0.8)
        manager.start()
        manager.add_request(prompt, seed=7)  # stream=1 for a second sample of it

    A token is that of `sample`, its position counted from the prompt, so it depends on seed, stream, position
    and logits alone. Raises ValueError for `do_sample=True`, whose draw depends on the batch, for
    asynchronous batching, a manager that runs and settings out of range.
    """
    if manager.generation_config.do_sample:
        raise ValueError(
            "seeded: do_sample=True would draw by stock sampling, whatever the seeds; leave it out"
        )
    if manager.continuous_batching_config.use_async_batching or manager.is_running():
        raise ValueError("seeded: use_async_batching must be off, and the manager not started")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check(settings)
    processors = manager.logit_processor
    processors.logits_processor.append(_SeededRequests(settings))  # type: ignore[arg-type]
    processors.tensors_required += 1
    processors.supported_keys |= _SeededRequests.supported_kwargs
    processors.do_processing = True
    add_request = manager.add_request

    def checked(*args: Any, **kwargs: Any) -> str | None:
        if "seed" not in kwargs:
            raise ValueError("this manager draws by seeds: add_request(prompt, seed=...)")
        return add_request(*args, **kwargs)

    manager.add_request = checked
    return manager


class _SeededRequests(ContinuousBatchingLogitsProcessor):
    """`SeededSampling` where each request has a seed and a position of its own."""

    supported_kwargs: dict[str, type] = {"seed": int, "stream": int}  # noqa: RUF012  (the base class's form)
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._rows: list[tuple[int, int, int]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Nothing: 32 bits a request would not hold its seed, stream and position, which are kept here."""
        self._rows = [_row(request.state) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Rows behind those of the requests with a new token are nobody's."""
        seeds, streams, positions = torch.tensor(self._rows, dtype=torch.int64).reshape(-1, 3).unbind(1)
        own = scores[: len(seeds)]
        tokens = sample(own, seeds, positions, streams=streams, **self._settings)
        return torch.cat([_alone(tokens, own), scores[len(seeds) :]])


def _row(state: Any) -> tuple[int, int, int]:
    """Seed, stream, position. What a request moved out had generated counts as its prompt when it is back."""
    before = len(state.initial_tokens) - state._true_initial_tokens if state._true_initial_tokens else 0
    given = state.logit_processor_kwargs
    return given["seed"], given.get("stream", 0), before + len(state.generated_tokens)


def _alone(tokens: Tensor, scores: Tensor) -> Tensor:
    """Scores [B, V] under which the tokens [B] alone are possible."""
    return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)


def _check(settings: dict[str, Any]) -> None:
    """Raise ValueError for what `sample` would refuse at the first token."""
    rows = max(torch.as_tensor(value).numel() for value in settings.values() if value is not None)
    sample(torch.zeros(rows, 1), [0] * rows, 0, **settings)
