"""The names a user can reach, and that the backend is found by name alone."""

import subprocess
import sys

import pytest

import bi_compile


def test_public_names_resolve():
    for name in bi_compile.__all__:
        assert getattr(bi_compile, name) is not None
    assert set(bi_compile.__all__) <= set(dir(bi_compile))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = bi_compile.nope


def test_the_backend_is_listed_and_works_without_an_import_of_ours():
    code = (
        "import sys, torch; assert 'batch_invariant' in torch._dynamo.list_backends(); "
        "assert 'bi_compile' not in sys.modules; "
        "f = torch.compile(lambda x: x + 1, backend='batch_invariant'); "
        "assert torch.equal(f(torch.ones(2)), torch.full((2,), 2.0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
