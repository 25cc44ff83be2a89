"""A report on a graph with an op of every family, as if on a CUDA device of some capability."""

from typing import Any

import torch
from torch._subclasses import FakeTensorMode

from bi_compile.report import CANONICAL, Graph, Report, Verdict
from bi_compile.report.orders import kernel_of
from bi_compile.templates import registry

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def report(capability: int) -> Report:
    """The nodes have the names that `ORDERS` in test_report_orders has."""
    bi, graph = torch.ops.bi_compile, torch.fx.Graph()
    import bi_compile.pipeline  # noqa: F401  (defines all ops)

    def tensor(*shape: int, dtype: torch.dtype = BF16, device: str = "cuda") -> torch.fx.Node:
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = torch.empty(shape, dtype=dtype, device=device)
        return node

    def call(name: str, op: Any, *arguments: Any) -> None:
        graph.create_node("call_function", op.default, arguments, name=name)

    with FakeTensorMode():
        for dtype, name in ((BF16, "bf16"), (FP16, "fp16"), (FP32, "fp32"), (FP64, "fp64")):
            call(f"mm_{name}", bi.mm, tensor(3, 64, dtype=dtype), tensor(64, 8, dtype=dtype))
        call("mm_long", bi.mm, tensor(3, 5000), tensor(5000, 8))
        call("mm_on_the_cpu", bi.mm, tensor(3, 64, device="cpu"), tensor(64, 8, device="cpu"))
        call("linear", bi.linear, tensor(3, 5, 64), tensor(8, 64), None)
        call("addmm", bi.addmm, tensor(8), tensor(3, 64), tensor(64, 8))
        for name, a, b in (("rows", (9, 64), (2, 64, 8)), ("k", (9, 64), (64, 8))):
            call(f"grouped_{name}", bi.grouped_mm, tensor(*a), tensor(*b), tensor(2))
        for name, channels, groups in (("dense", 64, 1), ("long", 512, 1), ("depthwise", 64, 64)):
            x, w = tensor(2, channels, 9, 9), tensor(64, channels // groups, 3, 3)
            twice = ([1, 1], [1, 1], [1, 1])
            call(f"convolution_{name}", bi.convolution, x, w, None, *twice, False, [0, 0], groups)
        q = tensor(1, 8, 5, 64)
        call("attention", bi.attention, q, q, q, None, False, 1.0)
        x = tensor(4, 100)
        call("sum_1", bi.sum, x, [1], False)
        call("argmax", bi.argmax, x, [1], False)
        call("logsumexp", bi.logsumexp, x, [1], False)
        call("softmax", bi.softmax, x, 1)
        call("layer_norm", bi.layer_norm, x, [100], tensor(100), tensor(100), 1e-5)
        call("added_rms_norm", bi.added_rms_norm, x, x, [100], tensor(100), 1e-5)
        call("cumsum", bi.cumsum, x, 1)
        call("scatter_reduce", bi.scatter_reduce, x, 0, tensor(4, 100), x, "sum", True)
        call("cdist", bi.cdist, x, x, 2.0)
        call("topk", bi.topk, x, 3, 1, True)
    assert set(registry.ops()) >= {"topk", "cdist"}
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    verdicts = [
        Verdict(str(n.target), CANONICAL, node=n.name, kernel=kernel_of(n, lambda device: capability))
        for n in nodes
    ]
    return Report("all", [Graph(verdicts)], 1)
