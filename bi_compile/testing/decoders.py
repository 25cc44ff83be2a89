"""Random small decoders with caches: a full forward of a sequence alone, or cut in pieces and in a batch.

    from bi_compile.testing.decoders import Decoder, check_decoder

Rung Q and rung P in one: however a prompt is cut into chunks and steps, whatever cache is used and however
long the other sequences of its left-padded batch are, a position has the logits of a full forward of its
sequence alone. Needs transformers, when a model is built.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.arguments import require_integer, require_integers, require_one_of
from bi_compile.testing.bits import differing, ulps
from bi_compile.testing.compiling import run_by
from bi_compile.testing.messages import BatchVarianceError
from bi_compile.testing.outputs import apart, shown
from bi_compile.testing.subjects import one_nan

VOCABULARY = 97
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "gemma3_text": {},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {"rotary_pct": 1.0},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7},
    "stablelm": {"partial_rotary_factor": 1.0},
    "starcoder2": {},
    "cohere": {},
}
"""Model types of transformers, the simple ones first, and what they need besides the sizes."""
CACHES = ("dynamic", "static")
DTYPES = ("float32", "bfloat16", "float16", "float64")
_ONE_HEAD_EACH = ("gpt_neox",)
_WINDOWED = ("mistral", "gemma3_text", "starcoder2", "phi3")


@dataclass(frozen=True)
class Decoder:
    """A model, its prompts and how they are run; equal data is an equal case.

    family: a key of FAMILIES. heads: of queries; a multiple of kv_heads. head_size: even. inner: of the MLP.
    window: of attention, where the family has one. lengths: of the prompts. cuts: tokens taken at a time,
    over and over, until the longest prompt is through. cache: "dynamic" or "static". seed: of weights and
    prompts. ValueError or TypeError names what cannot be.
    """

    family: str = "llama"
    heads: int = 1
    kv_heads: int = 1
    head_size: int = 2
    layers: int = 1
    inner: int = 1
    window: int | None = None
    lengths: tuple[int, ...] = (2, 1)
    cuts: tuple[int, ...] = (1,)
    cache: str = "dynamic"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("family", self.family, list(FAMILIES))
        require_one_of("cache", self.cache, CACHES)
        require_one_of("dtype", self.dtype, DTYPES)
        for name in ("heads", "kv_heads", "head_size", "layers", "inner"):
            require_integer(name, getattr(self, name), least=1)
        for name in ("lengths", "cuts"):
            require_integers(name, getattr(self, name), least=1)
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        require_integer("seed", self.seed)
        if self.window is not None:
            require_integer("window", self.window, least=1)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads must be a multiple of kv_heads, which is {self.kv_heads}, not {self.heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_size must be even, not {self.head_size}")

    @classmethod
    def drawn(cls, rng: random.Random) -> "Decoder":
        kv_heads = rng.choice((1, 1, 2, 3))
        return cls(
            family=rng.choice(list(FAMILIES)),
            heads=kv_heads * rng.choice((1, 2, 3)),
            kv_heads=kv_heads,
            head_size=rng.choice((2, 6, 8, 14, 16, 18, 32)),
            layers=rng.choice((1, 1, 2)),
            inner=rng.choice((1, 7, 16, 33, 118)),
            window=rng.choice((None, None, 3, 8, 33)),
            lengths=tuple(rng.choice((1, 2, 3, 7, 8, 9, 17, 40, 71)) for _ in range(rng.randint(1, 5))),
            cuts=tuple(rng.choice((1, 1, 2, 3, 5, 8, 17, 33)) for _ in range(rng.randint(1, 6))),
            cache=rng.choice(CACHES),
            dtype=rng.choice(("float32", "float32", "bfloat16")),
            seed=rng.randrange(1000),
        )

    @property
    def sizes(self) -> list[int]:
        """Tokens of each piece, the last one cut to fit."""
        left, sizes = max(self.lengths), []
        while left:
            sizes.append(min(left, self.cuts[len(sizes) % len(self.cuts)]))
            left -= sizes[-1]
        return sizes

    @property
    def settings(self) -> tuple[str, dict[str, Any]]:
        """The model type, and what its configuration is given."""
        heads = self.kv_heads if self.family in _ONE_HEAD_EACH else self.heads
        settings: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": heads * self.head_size,
            "head_dim": self.head_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **FAMILIES[self.family],
        }
        if self.window is not None and self.family in _WINDOWED:
            settings["sliding_window"] = self.window
        return self.family, settings

    def model(self) -> torch.nn.Module:
        """The model in evaluation mode, its weights drawn; torch's generator stays as it was."""
        from transformers import AutoConfig, AutoModelForCausalLM

        family, settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            config = AutoConfig.for_model(family, **settings)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
            with torch.no_grad():
                for parameter in model.parameters():  # biases start at 0, where a dropped one would not show
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.to(getattr(torch, self.dtype)).requires_grad_(False)

    def prompts(self) -> list[torch.Tensor]:
        """Token ids [length] of each."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in self.lengths]

    def alone(self, forward: Callable[..., Any]) -> list[torch.Tensor]:
        """Logits [length, vocabulary] of each prompt: one forward without a cache."""
        with torch.no_grad():
            return [forward(input_ids=ids[None], use_cache=False).logits[0] for ids in self.prompts()]

    def in_pieces(self, model: torch.nn.Module, forward: Callable[..., Any]) -> list[torch.Tensor]:
        """The same, all prompts in one left-padded batch, `sizes` tokens at a time with a cache."""
        longest, pad = max(self.lengths), torch.nn.functional.pad
        ids = torch.stack([pad(prompt, (longest - len(prompt), 0)) for prompt in self.prompts()])
        mask = (torch.arange(longest) >= longest - torch.tensor(self.lengths)[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, logits, begin = self._cache(model), [], 0
        for size in self.sizes:
            end = begin + size
            with torch.no_grad():
                outputs = forward(
                    input_ids=ids[:, begin:end],
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, begin:end],
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, begin = outputs.past_key_values, end
            logits.append(outputs.logits)
        rows = torch.cat(logits, 1)
        return [row[longest - length :] for row, length in zip(rows, self.lengths, strict=True)]

    def _cache(self, model: torch.nn.Module) -> Any:
        from transformers import DynamicCache, StaticCache

        config: Any = model.config
        if self.cache == "static":
            return StaticCache(config=config, max_cache_len=max(self.lengths) + 3)
        return DynamicCache(config=config)


def check_decoder(
    case: Decoder, run: str | Callable[[torch.nn.Module], Callable[..., Any]] = "eager"
) -> None:
    """Assert that every prompt has the logits of a full forward alone, cut in pieces and in the batch.

    run: "eager" for stock PyTorch, "canonical" for the model under `bi_compile.eager()`, another backend of
        torch.compile, or a function that makes of the model what is called.
    Raises BatchVarianceError, which names the prompt and its first position that differs. Where `run` is a
    name, whatever is raised has a note, a program that shows the failure by itself.
    """
    try:
        _check(case, run)
    except Exception as error:
        if isinstance(run, str):
            from bi_compile.testing.decoder_scripts import decoder_script_of

            error.add_note(decoder_script_of(case, backend=run, failure=error))
        raise


def _check(case: Decoder, run: str | Callable[[torch.nn.Module], Callable[..., Any]]) -> None:
    model = case.model()
    forward = run_by(model, run) if isinstance(run, str) else run(model)
    alone, together = case.alone(forward), case.in_pieces(model, forward)
    for prompt, (want, got) in enumerate(zip(alone, together, strict=True)):
        differ = differing(one_nan(want), one_nan(got))
        if differ.any():
            at = tuple(differ.nonzero()[0].tolist())
            raise BatchVarianceError(
                f"the logits of prompt {prompt} change with how it is run",
                details=[
                    f"position {at[0]} of {len(want)}, taken in pieces of {case.sizes}",
                    f"beside prompts of {case.lengths} tokens, padded on the left",
                    f"first difference at {list(at)}: alone {shown(want[at])}, in pieces {shown(got[at])}"
                    f"{apart(ulps(want, got)[at])}; {int(differ.sum())} of {differ.numel()} elements differ",
                ],
                hint=f"check_decoder({case!r}{f', {run!r}' * isinstance(run, str)}) shows it again.",
            )
