"""What checks are tried on: a layer whose stock product changes with the batch, and samples that show it."""

import pytest
import torch

from tests.bits import order_sensitive

FEATURES = 301


@pytest.fixture
def model():
    return torch.nn.Linear(FEATURES, 19)


@pytest.fixture
def samples():
    return order_sensitive(9, FEATURES)
