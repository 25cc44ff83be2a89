"""Scaled dot product attention over fixed splits of the keys."""

from bi_compile.templates.attention.contract import (
    attention,
    attention_backward,
    attention_with_logsumexp,
    scaled_dot_product_attention,
)

__all__ = ["attention", "attention_backward", "attention_with_logsumexp", "scaled_dot_product_attention"]
