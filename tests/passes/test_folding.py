"""Folds add their windows in one order, unfolding and shuffling copy: in graphs, outside, in any batch."""

import pytest
import torch
import torch.nn.functional as F

from tests.bits import order_sensitive
from tests.passes.tables import check_any_batch, check_left_alone, check_rewritten

X = order_sensitive(7, 8, 6, 4)
COPIES = {
    "unfold": lambda x: F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=(2, 1)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
}


def folded(x):
    """[B, 8, 6, 4] as 16 windows of 3 x 2, up to six to a pixel -> [B, 2, 4, 5]."""
    return F.fold(x.reshape(-1, 12, 16), (4, 5), (3, 2), padding=(1, 0))


def test_is_rewritten():
    check_rewritten(folded, (torch.randn(3, 8, 6, 4),), {"bi_compile.index_put_add"})


@pytest.mark.parametrize("name", COPIES)
def test_is_left_alone(name):
    check_left_alone(COPIES[name], (X,))


def test_compiled_for_any_batch():
    """Outputs and gradients: the gradient of unfolding is a fold, those of the others copy.

    Stock PyTorch folds every sample in one order on the CPU, too: there is no control but the next test.
    """
    check_any_batch(
        lambda x: torch.cat([f(x).flatten(1) for f in (folded, *COPIES.values())], 1), X, alone=True
    )


def test_control_the_order_shows():
    taps = [folded(X * (torch.arange(12) == tap).repeat_interleave(16).view(1, 8, 6, 4)) for tap in range(12)]
    assert not torch.equal(sum(taps), sum(taps[::-1]))
