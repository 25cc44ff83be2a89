"""What an entry of the list is: a small random-weight model of a real architecture, and samples for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

VOCABULARY = 97
LENGTH = 11
"""Tokens of the longest sample: odd, so that no row count is a multiple of a vector."""
ENCODER_DECODER = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 118,
    "decoder_ffn_dim": 118,
}
"""Settings that many encoder-decoders share."""


@dataclass(frozen=True)
class Architecture:
    """One entry of the list.

    model, config: class names in transformers; or model a name in timm or in `recurrent.py`, with no config.
    package: diffusers, where that has the model.
    settings: the sizes that make it small, odd where the architecture allows it.
    traits: what it is here for.
    kind: what the model is fed, a key of SAMPLES.
    extra: further arguments of every call.
    size: of an image's side, or of a waveform.
    fades: whether its own initialisation lets the signal fade; its convolutions are then drawn anew.
    refused: by dtype, the op that stops its compilation, where that is known and expected.
    experts: how transformers computes a mixture of them.
    asks: what its Python asks of the size of the batch, where no answer changes a result.
    """

    name: str
    model: str
    config: str
    settings: dict[str, Any]
    traits: str
    kind: str = "text"
    extra: dict[str, Any] = field(default_factory=dict)
    size: int = 18
    fades: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    experts: str = "batched_mm"
    package: str = ""
    asks: tuple[str, ...] = ()

    def build(self, dtype: torch.dtype) -> torch.nn.Module:
        """The model in evaluation mode, the same weights every time."""
        torch.manual_seed(len(self.name))
        model = (self._from_transformers() if self.config else self._from_elsewhere()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if self.fades and parameter.dim() == 4:
                    torch.nn.init.kaiming_normal_(parameter)
                # Biases start at 0, where a dropped one would not show.
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.to(dtype).requires_grad_(False)

    def _from_transformers(self) -> torch.nn.Module:
        import transformers

        config = getattr(transformers, self.config)(**self.settings)
        # Loops over experts break graphs; `tests/passes/test_experts.py` compares all ways of computing them.
        config._experts_implementation = self.experts
        return getattr(transformers, self.model)(config)

    def _from_elsewhere(self) -> torch.nn.Module:
        from tests.architectures.zoo.recurrent import MODULES
        from tests.architectures.zoo.without_torchvision import timm

        if self.model in MODULES:
            return MODULES[self.model](**self.settings)
        if self.package:
            return getattr(import_module(self.package), self.model)(**self.settings)
        return timm().create_model(self.model, **self.settings)

    def call(self, model: torch.nn.Module) -> Callable[..., dict[str, torch.Tensor]]:
        """The model as a function of positional inputs: its logits, its states, or its first output."""
        names = tuple(self.samples(1, torch.float32))

        def forward(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            if self.package:
                named = dict(zip(names, inputs, strict=True))
                return {"sample": model(**named, **self.extra, return_dict=False)[0]}
            if not self.config:
                return {"logits": model(*inputs)}
            outputs = model(**dict(zip(names, inputs, strict=True)), **self.extra)
            for name in ("logits", "last_hidden_state"):
                if name in outputs:
                    return {name: outputs[name]}
            return {"first": outputs[0]}

        return forward

    def samples(self, count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """A pool of `count` samples of full length, by argument."""
        found = SAMPLES[self.kind](count, self.size, torch.Generator().manual_seed(17))
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}

    @property
    def masked(self) -> bool:
        """Whether samples of several lengths can share a batch."""
        return self.kind in ("text", "seq2seq")


def _text(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _seq2seq(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    decoded = torch.randint(5, VOCABULARY, (count, 5), generator=generator)
    return {**_text(count, size, generator), "decoder_input_ids": decoded}


def _unmasked(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, VOCABULARY, (count, size), generator=generator)}


def _image(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 3, size, size, generator=generator)}


def _video(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(count, 4, 3, size, size, generator=generator)}


def _waveform(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(count, size, generator=generator)}


def _spectrogram(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(count, size, 16, generator=generator)}


def _speech(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    decoded = torch.randint(5, VOCABULARY, (count, 5), generator=generator)
    return {
        "input_features": torch.randn(count, 16, size, generator=generator),
        "decoder_input_ids": decoded,
    }


def _series(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"past_values": torch.randn(count, size, 3, generator=generator)}


def _latents(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(count, 3, size, size, generator=generator)}


def _denoising(
    name: str,
    *more: str,
    shape: Callable[[int], tuple[int, ...]] = lambda size: (4, size, size),
    last_step: float = 1000.0,
) -> Callable[[int, int, torch.Generator], dict[str, torch.Tensor]]:
    """Noise, called `name`, at steps of its own up to `last_step`, and what each sample is told besides."""

    def samples(count: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        found = {
            name: torch.randn(count, *shape(size), generator=generator),
            "timestep": torch.rand(count, generator=generator) * last_step,
            "class_labels": torch.randint(0, 10, (count,), generator=generator),
            "encoder_hidden_states": torch.randn(count, 7, 32, generator=generator),
            "pooled_projections": torch.randn(count, 32, generator=generator),
        }
        return {key: x for key, x in found.items() if key in (name, "timestep", *more)}

    return samples


_TEXT = "encoder_hidden_states"

SAMPLES = {
    "text": _text,
    "seq2seq": _seq2seq,
    "unmasked": _unmasked,
    "image": _image,
    "video": _video,
    "waveform": _waveform,
    "spectrogram": _spectrogram,
    "speech": _speech,
    "series": _series,
    "latents": _latents,
    "diffusion": _denoising("sample"),
    "prompted": _denoising("sample", _TEXT),
    "classes": _denoising("hidden_states", "class_labels"),
    "captioned": _denoising("hidden_states", _TEXT),
    "pooled": _denoising("hidden_states", _TEXT, "pooled_projections"),
    "stream": _denoising(
        "hidden_states", _TEXT, "pooled_projections", shape=lambda size: (size, 4), last_step=1.0
    ),
    "clip": _denoising("hidden_states", _TEXT, shape=lambda size: (4, 3, size, size)),
}


def without(settings: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    """Settings without some, with others changed."""
    return {key: value for key, value in settings.items() if key not in names} | changes


ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 118,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 118,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
