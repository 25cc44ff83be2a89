"""Test set-up: hypothesis profiles, thread count restored, kernels cached between runs."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("fast", max_examples=25, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
PROFILE = os.environ.get("BI_COMPILE_TEST_PROFILE", "fast")
settings.load_profile(PROFILE)


def pytest_collectstart(collector):
    # The inputs of a module are made when it is imported: the same ones whatever was imported before.
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    for item in items if PROFILE != "thorough" else ():
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="long; BI_COMPILE_TEST_PROFILE=thorough runs it"))


@pytest.fixture(autouse=True)
def _seeded_and_threads_restored():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_told_yet():
    """Warnings that are shown once a line, and graphs, are those of this test."""
    # Not at the top: it loads Triton, before the tests of kernels say that it is to interpret them.
    from bi_compile import dynamo

    torch.compiler.reset()
    dynamo._warned.clear()
    yield
    torch.compiler.reset()
