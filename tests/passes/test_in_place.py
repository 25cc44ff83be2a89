"""Ops that read what they write into: compiled as in eager PyTorch, and copied only there."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bi_compile.passes.in_place import keep_what_is_read
from tests.bits import assert_same_bits


def overlapping(x):
    """Ops that read what they write into: on the CPU Inductor carries them out in place."""
    y, turned = x * 0.7, torch.arange(40).flip(0)
    return (
        y.index_copy(1, turned, y),
        y.clone().index_copy_(1, turned, y),
        y.index_put((torch.arange(x.shape[0])[:, None], torch.arange(30) + 5), y[:, :30]),
        torch.ops.aten._unsafe_index_put(y, [None, turned], y),
        (y * 8).int().index_copy(1, turned, (y * 8).int()),
        y.as_strided_scatter(y[:, :30], (x.shape[0], 30), (40, 1), 5),
        y.slice_scatter(y[:, :35], 1, 5, 40),
        y.select_scatter(y[:, 0], 1, 3),
    )


@pytest.mark.parametrize("number", range(len(overlapping(torch.randn(2, 40)))))
def test_an_op_that_reads_what_it_writes(number):
    torch.compiler.reset()
    x = torch.randn(5, 40)

    def fn(x):
        return overlapping(x)[number]

    assert_same_bits(torch.compile(fn, backend="batch_invariant")(x), fn(x))


def test_the_copy_is_in_the_dump(tmp_path):
    torch.compiler.reset()
    fn = lambda x: x.index_copy(1, torch.arange(40).flip(0), x)  # noqa: E731
    compiled = torch.compile(
        lambda x: fn(x * 0.7), backend="batch_invariant", options={"dump": str(tmp_path)}
    )
    compiled(torch.randn(5, 40))
    (copied,) = tmp_path.glob("*/*_copied.py")
    assert "aten.clone" in copied.read_text()


def copies(fn):
    graph = make_fx(fn, tracing_mode="fake")(torch.randn(5, 40)).graph
    before = len(graph.nodes)
    changed = keep_what_is_read(graph)
    graph.lint()
    made = len(graph.nodes) - before
    assert changed == bool(made)
    return made


def test_a_copy_is_made_only_where_the_memory_is_read():
    for reads in (
        lambda x: (lambda z: torch.ops.aten.index_put(z, [None, torch.arange(40).flip(0)], z))(x * 2),
        lambda x: (lambda z: z.as_strided_scatter(z[:, :30], (5, 30), (40, 1), 5))(x * 2),
    ):
        assert copies(reads) == 1
    for apart in (
        lambda x: (x * 2).index_put((torch.arange(5)[:, None], torch.arange(40)), x * 3),
        lambda x: (x * 2).slice_scatter(x[:, :35], 1, 5, 40),
        lambda x: (x * 2).relu(),
    ):
        assert copies(apart) == 0
