"""The pytest plugin of bi_compile, loaded by pytest in every project that has bi_compile installed.

It imports no torch (which takes over two seconds): a project that never asks for invariance pays nothing.
"""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "batch_invariance: a test that compares bits across batches")
