"""Decoders of the list of architectures, with room for more tokens, and prompts for them."""

import inspect
from dataclasses import replace

import torch

from tests.architectures.check import DTYPES
from tests.architectures.zoo import ARCHITECTURES, Architecture
from tests.architectures.zoo.architecture import VOCABULARY
from tests.architectures.zoo.decoders import DECODERS
from tests.architectures.zoo.experts import EXPERTS

POSITIONS = 128
WINDOW = 40
LENGTHS = (100, 71, 9)
"""Tokens of the prompts: more than one block of keys, more than a window, and neither."""

OTHERS = {
    "gpt-oss": "its own attention appends the sinks to the scores, where their place moves with the keys",
    "mpt": "its position bias counts from the last key: a step adds other numbers than a full forward",
}
"""Decoders that do not keep rung Q as they are, and why."""
NAMES = tuple(a.name for a in (*DECODERS, *EXPERTS) if a.name not in OTHERS)
BY_NAME: dict[str, Architecture] = {a.name: a for a in ARCHITECTURES}
BY_HAND = ("falcon", "bloom", "gptj", "gpt-neo", "codegen", "xglm")
"""Their attention is their own: they do not ask transformers' interface for one."""
WITHOUT_STATIC_CACHE = ("bloom", "gpt-neo")
"""transformers' own code takes the last slot of a static cache for the last token, or raises."""


def build(name: str, dtype: str = "fp32", attention: str | None = None) -> torch.nn.Module:
    """A small decoder with random weights."""
    settings = {**BY_NAME[name].settings, "use_cache": True}
    for key in ("max_position_embeddings", "n_positions"):
        if key in settings:
            settings[key] = POSITIONS
    if "sliding_window" in settings:
        settings["sliding_window"] = WINDOW
    model = replace(BY_NAME[name], settings=settings).build(DTYPES[dtype])
    if attention:
        model.set_attn_implementation(attention)
    return model


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    """Token ids [length] of each prompt."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in lengths]


def left_padded(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [number, longest]."""
    longest = max(len(s) for s in sequences)
    ids = torch.stack([torch.nn.functional.pad(s, (longest - len(s), 0)) for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences]).unsqueeze(1)
    return ids, (torch.arange(longest) >= longest - lengths).long()


def in_chunks(model, ids: torch.Tensor, mask: torch.Tensor, sizes: list[int], cache) -> torch.Tensor:
    """Logits of all positions, the sequence taken in `sizes` tokens at a time."""
    stock = getattr(model, "_orig_mod", model)
    takes_positions = "position_ids" in inspect.signature(stock.forward).parameters
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits, begin = [], 0
    for size in sizes:
        end = begin + size
        extra = {"position_ids": positions[:, begin:end]} if takes_positions else {}
        outputs = model(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        cache, begin = outputs.past_key_values, end
        logits.append(outputs.logits)
    return torch.cat(logits, 1)
