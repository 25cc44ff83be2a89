"""An op through which the batch cannot be followed: compiled, and told, from the cache as well."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.testing import assert_close

import bi_compile
from bi_compile.errors import UnknownBatchWarning

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def rearranged(x):
    return x.reshape(-1, x.shape[0])[:1].T + 0


def followed(x):
    return x.reshape(x.shape[0], -1)[:, :1] + 0


def told(fn, **options):
    """The warnings of a compilation by a process of its own, but for what it finds in the caches on disk."""
    torch.compiler.reset()
    counters.clear()
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        torch.compile(fn, backend="batch_invariant", **options)(X.clone())
    return [w for w in caught if w.category is UnknownBatchWarning]


def test_samples_are_mixed_where_nobody_can_say():
    """The control: so it is worth a warning."""
    torch.compiler.reset()
    compiled = torch.compile(rearranged, backend="batch_invariant")
    with torch.no_grad(), pytest.warns(UnknownBatchWarning):
        whole = compiled(X)
    with torch.no_grad():
        assert not torch.equal(whole[2:5], compiled(X[2:5].clone()))


def test_it_is_told_with_the_reason_the_line_and_the_way():
    (warning,) = told(rearranged)
    first, way, where, hint = str(warning.message).splitlines()
    assert first.startswith(
        "unknown whether aten.reshape keeps the samples of a batch apart: the reshape cuts"
    )
    assert way.startswith("  the batch comes by ")
    assert f"{__file__}:{rearranged.__code__.co_firstlineno + 1}, in rearranged" in where
    assert hint.startswith("Hint: compare bits")


def test_what_can_be_followed_is_not_told():
    assert told(followed) == []


def test_who_ignores_what_is_unsupported_is_not_told():
    assert told(rearranged, options={"on_unsupported": "ignore"}) == []


def test_a_graph_from_the_cache_is_told_again():
    with fresh_cache():
        for _ in range(2):
            assert told(followed) == []
        assert counters["aot_autograd"]["autograd_cache_hit"] == 1, "the caches are on"
        for _ in range(2):
            assert len(told(rearranged)) == 1
        assert counters["aot_autograd"]["autograd_cache_hit"] == 0
        assert counters["inductor"]["fxgraph_cache_hit"] == 0


def test_a_graph_with_gradients_is_told_again():
    with fresh_cache():
        for _ in range(2):
            torch.compiler.reset()
            counters.clear()
            x = X.clone().requires_grad_()
            compiled = torch.compile(lambda ids, x: F.embedding(ids, x).sum(1), backend="batch_invariant")
            with pytest.warns(UnknownBatchWarning, match="the table of the embedding depends on the batch"):
                result = compiled(torch.tensor([[0, 1], [5, 5]]), x)
            result.sum().backward()
            assert_close(x.grad, torch.tensor([1.0, 1, 0, 0, 0, 2])[:, None].expand(6, 8))
        assert counters["inductor"]["fxgraph_cache_hit"] == 0


def test_graphs_of_other_backends_are_kept_in_the_cache_after_it():
    with fresh_cache():
        assert len(told(rearranged)) == 1
        for hits in (0, 1):
            torch.compiler.reset()
            counters.clear()
            with torch.no_grad():
                torch.compile(followed)(X.clone())
            assert counters["aot_autograd"]["autograd_cache_hit"] == hits


def test_the_report_says_the_same_and_warns_of_nothing():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UnknownBatchWarning)
        report = bi_compile.explain(rearranged)(X.clone())
    assert [verdict.op for verdict in report.unknown] == ["aten.reshape.default"]
    assert not report.promised
