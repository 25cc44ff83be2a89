"""Small random-weight models of real transformer architectures, and samples for each.

Every entry is a configuration class of the transformers library with the sizes that make it small, odd where
the architecture allows it, and the traits it is here for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf

VOCABULARY = 97
LENGTH = 11
"""Tokens of the longest sample: odd, so that no row count is a multiple of a vector."""


@dataclass(frozen=True)
class Architecture:
    name: str
    model: str
    """Name of the model class in transformers."""
    config: str
    settings: dict[str, Any]
    traits: str
    kind: str = "text"
    """What the model is fed: "text", "seq2seq" or "image"."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of every call."""

    def build(self, dtype: torch.dtype) -> torch.nn.Module:
        """The model in evaluation mode, the same weights every time."""
        torch.manual_seed(len(self.name))
        config = getattr(hf, self.config)(**self.settings)
        model = getattr(hf, self.model)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # The library starts biases at 0, where a dropped one would not show.
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.to(dtype).requires_grad_(False)

    def call(self, model: torch.nn.Module) -> Callable[..., dict[str, torch.Tensor]]:
        """The model as a function of positional inputs, all its floating-point outputs by name."""

        def forward(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = model(**dict(zip(self.arguments, inputs, strict=True)), **self.extra)
            name = "logits" if "logits" in outputs else "last_hidden_state"
            return {name: outputs[name]}

        return forward

    @property
    def arguments(self) -> tuple[str, ...]:
        return {
            "text": ("input_ids", "attention_mask"),
            "seq2seq": ("input_ids", "attention_mask", "decoder_input_ids"),
            "image": ("pixel_values",),
        }[self.kind]

    def samples(self, count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """A pool of `count` samples of full length, by argument."""
        generator = torch.Generator().manual_seed(17)
        if self.kind == "image":
            return {"pixel_values": torch.randn(count, 3, 18, 18, generator=generator).to(dtype)}
        ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.kind == "seq2seq":
            inputs["decoder_input_ids"] = torch.randint(5, VOCABULARY, (count, 5), generator=generator)
        return inputs


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 118,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_DECODER = {
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


def _without(settings: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names} | changes


ARCHITECTURES = (
    Architecture("bert", "BertModel", "BertConfig", _ENCODER, "post-norm, gelu, pooler"),
    Architecture(
        "roberta",
        "RobertaForMaskedLM",
        "RobertaConfig",
        _without(_ENCODER, hidden_size=52),
        "head of 13, tied embeddings",
    ),
    Architecture(
        "distilbert",
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 54,
            "n_layers": 2,
            "n_heads": 6,
            "hidden_dim": 101,
            "max_position_embeddings": 32,
        },
        "head of 9, odd feed-forward",
    ),
    Architecture(
        "albert",
        "AlbertModel",
        "AlbertConfig",
        _without(_ENCODER, embedding_size=33),
        "shared layers, factorised embeddings",
    ),
    Architecture(
        "electra",
        "ElectraModel",
        "ElectraConfig",
        _without(_ENCODER, embedding_size=35),
        "projected embeddings",
    ),
    Architecture(
        "deberta-v2",
        "DebertaV2Model",
        "DebertaV2Config",
        _without(
            _ENCODER,
            relative_attention=True,
            position_buckets=8,
            max_relative_positions=-1,
            pos_att_type=["p2c", "c2p"],
            type_vocab_size=0,
            position_biased_input=False,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
        ),
        "disentangled relative attention",
    ),
    Architecture("mpnet", "MPNetModel", "MPNetConfig", _ENCODER, "relative position buckets"),
    Architecture(
        "modernbert",
        "ModernBertModel",
        "ModernBertConfig",
        _without(
            _ENCODER,
            num_attention_heads=3,
            num_hidden_layers=3,
            local_attention=4,
            global_attn_every_n_layers=2,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "rotary, local attention, gated gelu",
    ),
    Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 66,
            "n_layer": 2,
            "n_head": 6,
            "n_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "use_cache": False,
        },
        "Conv1D weights, gelu_new, tied embeddings, head of 11",
    ),
    Architecture(
        "gpt-neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        _without(_DECODER, "num_key_value_heads", rotary_pct=0.4),
        "parallel residual, partial rotary",
    ),
    Architecture(
        "llama", "LlamaForCausalLM", "LlamaConfig", _DECODER, "rms norm, silu gate, grouped queries"
    ),
    Architecture(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        _without(_DECODER, tie_word_embeddings=True),
        "biases in attention, tied embeddings",
    ),
    Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        _without(_DECODER, head_dim=14),
        "norms of queries and keys",
    ),
    Architecture(
        "mistral",
        "MistralForCausalLM",
        "MistralConfig",
        _without(_DECODER, sliding_window=5),
        "sliding window",
    ),
    Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _without(_DECODER, head_dim=14, sliding_window=5, query_pre_attn_scalar=14),
        "soft caps on scores and logits, four norms a layer",
    ),
    Architecture(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _without(_DECODER, head_dim=14, sliding_window=5, num_key_value_heads=1),
        "one key head, local and global rotary",
    ),
    Architecture(
        "phi3", "Phi3ForCausalLM", "Phi3Config", _DECODER, "fused query-key-value and gate projections"
    ),
    Architecture(
        "falcon",
        "FalconForCausalLM",
        "FalconConfig",
        _without(_DECODER, "num_key_value_heads", "intermediate_size", multi_query=True, parallel_attn=True),
        "one key head, parallel attention",
    ),
    Architecture(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "n_layer": 2,
            "n_head": 6,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "use_cache": False,
        },
        "ALiBi, head count no power of two",
    ),
    Architecture(
        "opt",
        "OPTForCausalLM",
        "OPTConfig",
        _without(
            _DECODER,
            "num_key_value_heads",
            "intermediate_size",
            ffn_dim=118,
            word_embed_proj_dim=60,
            dropout=0.0,
        ),
        "relu, learned positions from the mask",
    ),
    Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2Config",
        _DECODER,
        "norms after attention, norms of queries and keys",
    ),
    Architecture(
        "t5",
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": 54,
            "d_kv": 11,
            "d_ff": 118,
            "num_layers": 2,
            "num_heads": 5,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
            "use_cache": False,
        },
        "relative bias, cross attention, head size apart from width",
        kind="seq2seq",
        extra={"use_cache": False},
    ),
    Architecture(
        "bart",
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 60,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 118,
            "decoder_ffn_dim": 118,
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
            "use_cache": False,
        },
        "cross attention, tied embeddings, logits bias",
        kind="seq2seq",
        extra={"use_cache": False},
    ),
    Architecture(
        "vit",
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 118,
            "image_size": 18,
            "patch_size": 6,
        },
        "convolution over patches, class token",
        kind="image",
    ),
)
