"""Inductor's code for a CUDA device on a machine without one: generated, and not compiled."""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import torch
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bi_compile import inductor
from bi_compile.passes.epilogue import join_products_and_epilogues
from bi_compile.passes.residual import join_sums_and_norms
from bi_compile.pipeline import decompositions
from bi_compile.templates.pointwise.inductor import canonical_codegen
from tests.interpreted.compiled import pretend_driver

_HOPPER = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=2**36,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
)


def generated(function: Callable, *shapes: tuple[int, ...], dtype: torch.dtype, ours: bool = True) -> str:
    """The Triton code for `function` of tensors of these shapes, as we compile it or stock."""
    pretend_driver(90)
    interface = {
        "get_device_properties": _HOPPER,
        "get_compute_capability": 90,
        "current_device": 0,
        "device_count": 1,
    }
    cuda = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_properties": _HOPPER,
    }
    with ExitStack() as stack:
        for name, value in interface.items():
            answer = staticmethod(lambda *a, value=value: value)
            stack.enter_context(mock.patch.object(CudaInterface, name, answer))
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        stack.enter_context(mock.patch.object(torch.version, "cuda", "12.8"))
        stack.enter_context(config.patch({"compile_threads": 1, **(inductor._PINNED if ours else {})}))
        table = decompositions() if ours else inductor.stock_decompositions()
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        inputs = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        module = make_fx(function, decomposition_table=table)(*inputs)
        if ours:
            join_sums_and_norms(module.graph)
            join_products_and_epilogues(module.graph)
            stack.enter_context(canonical_codegen())
        graph = GraphLowering(module, example_inputs=inputs)
        stack.enter_context(V.set_graph_handler(graph))
        stack.enter_context(V.set_fake_mode(fake))
        stack.enter_context(V.set_debug_handler(DebugContext()))
        graph.run(*inputs)
        code, _ = graph.codegen()
        return code if isinstance(code, str) else code.value
