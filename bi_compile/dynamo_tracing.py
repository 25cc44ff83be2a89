"""What Dynamo puts into graphs otherwise than it would: whole ops, nested attention, recurrent layers.

Beside `dynamo` and `dynamo_sizes`, the only file that names Dynamo's privates.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch


def trace_whole_ops(ours: Callable[[], bool], in_place_of: Mapping[Any, Callable[..., Any]]) -> None:
    """While `ours()` says that a function of this backend is traced, Dynamo leaves some ops whole.

    It makes several ops of `addcdiv`, `addcmul_` and their like, before autograd, and their gradients are
    others than those of the op; and it runs PyTorch's attention of nested tensors, which fails on the CPU.

    in_place_of: stock function -> what stands in graphs instead. Those that ask for sizes as plain numbers
        would make a constant of the batch.
    """
    from torch._dynamo.variables.tensor import TensorVariable
    from torch._dynamo.variables.torch import TorchInGraphFunctionVariable

    def whole(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def handler(*args: Any, **kwargs: Any) -> Any:
            return None if ours() else stock(*args, **kwargs)  # None: the op itself goes into the graph

        return handler

    table = getattr(TensorVariable, "tp_methods", {})
    for name in ("add_", "addcdiv_", "addcmul_"):
        if name in table:  # from torch 2.15 on
            table[name] = dataclasses.replace(table[name], handler=whole(table[name].handler))
        elif hasattr(TensorVariable, f"method_{name}"):
            setattr(TensorVariable, f"method_{name}", whole(getattr(TensorVariable, f"method_{name}")))
    handlers = TorchInGraphFunctionVariable._get_handlers()
    if torch.addcdiv in handlers:
        handlers[torch.addcdiv] = whole(handlers[torch.addcdiv])

    def instead(own: Callable[..., Any], stock: Callable[..., Any] | None) -> Callable[..., Any]:
        def handler(self: Any, translator: Any, *args: Any, **kwargs: Any) -> Any:
            if not ours():
                return stock and stock(self, translator, *args, **kwargs)
            return TorchInGraphFunctionVariable(own).call_function(translator, list(args), kwargs)

        return handler

    for function, own in in_place_of.items():
        handlers[function] = instead(own, handlers.get(function))

    attention = torch.nn.functional.scaled_dot_product_attention
    stock_attention = handlers.get(attention)

    def attention_handler(self: Any, translator: Any, *args: Any, **kwargs: Any) -> Any:
        if ours() and any(map(_is_nested, (*args, *kwargs.values()))):
            op = TorchInGraphFunctionVariable(torch.ops.bi_compile.differentiable_attention.default)
            return op.call_function(translator, list(args), kwargs)
        return stock_attention and stock_attention(self, translator, *args, **kwargs)

    handlers[attention] = attention_handler


def _is_nested(variable: Any) -> bool:
    proxy = getattr(variable, "proxy", None)
    return proxy is not None and getattr(proxy.node.meta.get("example_value"), "is_nested", False)


def is_tracing() -> bool:
    """Whether this thread makes a graph: `torch.compiler.is_compiling()` there, as from torch 2.13 on."""
    from torch._guards import TracingContext

    return torch.compiler.is_compiling() or TracingContext.try_get() is not None


def trace_recurrent_modules() -> None:
    """Let Dynamo trace nn.LSTM, nn.GRU and nn.RNN: by default it leaves them to eager PyTorch, silently.

    A setting of the process: Dynamo asks before it knows which backend a graph is for.
    """
    from torch._dynamo import config

    config.allow_rnn = True


class UncompiledFlexAttention:
    """Within, flex_attention calls its operator itself and asks no Dynamo, which refuses under a mode."""

    _flag = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    _lock = threading.Lock()
    _open = 0
    _before = False

    def __enter__(self) -> None:
        self._count(+1)

    def __exit__(self, *error: Any) -> None:
        self._count(-1)

    @classmethod
    def _count(cls, change: int) -> None:
        import torch.nn.attention.flex_attention as module

        with cls._lock:
            if cls._open == 0:
                cls._before = getattr(module, cls._flag)
            cls._open += change
            setattr(module, cls._flag, cls._before or cls._open > 0)
