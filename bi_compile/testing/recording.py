"""Every op that one call of a function runs: its name, the user's line, its results, and where they go."""

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bi_compile.testing.batches import Batch, Pool
from bi_compile.testing.outputs import Outputs, apply, copied
from bi_compile.testing.trees import leaves

# Copies leave every value as it is; whether one is made follows the strides, which are free in a batch of 1.
_COPIES = ("aten.clone.default", "aten._unsafe_view.default", "aten.contiguous.default")
# Their values are whatever the memory held before.
_UNWRITTEN = ("aten.empty", "aten.new_empty", "aten.resize")

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class Op:
    """One op as it ran."""

    name: str
    """As PyTorch spells it: `aten.addmm.default`."""
    where: str | None
    """The innermost line that is neither torch's nor ours; None inside torch.nn alone."""
    module: str | None
    """The innermost module: `layers.0.linear (Linear)`."""
    signature: str
    """dtypes and shapes of the tensors it was given."""
    sources: frozenset[int]
    """Numbers of the ops that wrote the memory it reads."""
    results: tuple[torch.Tensor, ...]
    """Copies; empty where the op computes nothing, as views and copies do."""

    @property
    def place(self) -> str:
        return self.where or f"module {self.module}"


@dataclass
class Recording:
    ops: list[Op] = field(default_factory=list)
    outputs: Outputs = field(default_factory=dict)
    writers: dict[str, frozenset[int]] = field(default_factory=dict)
    """By output: the numbers of the ops that wrote its memory."""

    def compared(self) -> list[int]:
        """Numbers of the ops that compute."""
        return [number for number, op in enumerate(self.ops) if op.results]


def record(
    fn: Callable[..., Any], pool: Pool, batch: Batch, under: Callable[[], AbstractContextManager] | None
) -> Recording:
    """Run fn on a batch, with every op it runs recorded below `under`.

    Every result is copied and its memory is held until the recording is dropped, so that no two tensors of
    it share an address by chance.
    """
    inputs = pool.take(batch)
    recorder = _Recorder(_module_names(fn))
    # Dynamo must not meet the recorder: it would skip the frames of compiled parts from then on, for good.
    with torch.compiler.set_stance("force_eager"), recorder:
        if under is None:
            returned = _run(fn, inputs)
        else:
            with under():
                returned = _run(fn, inputs)
    recording = recorder.recording
    recording.outputs, _ = copied(returned)
    for name, leaf in leaves(returned, "output"):
        if isinstance(leaf, torch.Tensor):
            recording.writers[name] = recorder.writers_of(leaf)
    return recording


def _run(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """A frame of its own, where the search for the user's line ends."""
    return apply(fn, inputs)


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.recording = Recording()
        self._names = names
        self._wrote: dict[int, set[int]] = {}
        self._held: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        signature = ", ".join(map(_short, given)) or "no tensors"
        sources = frozenset[int]().union(*map(self.writers_of, given))
        result = func(*args, **kwargs)
        written = [*_tensors(result), *_mutated(func, args, kwargs)]
        unwritten = str(func).startswith(_UNWRITTEN)
        computes = not (unwritten or _moves_only(func))
        where, module = _frames(sys._getframe(1), self._names)
        results = tuple(t.detach().clone() for t in written) if computes else ()
        number = len(self.recording.ops)
        self.recording.ops.append(Op(str(func), where, module, signature, sources, results))
        for tensor in () if unwritten else written:
            storage = tensor.untyped_storage()
            if storage.data_ptr():
                self._wrote.setdefault(storage.data_ptr(), set()).add(number)
                self._held.append(storage)
        return result

    def writers_of(self, tensor: torch.Tensor) -> frozenset[int]:
        if tensor.layout is not torch.strided:
            return frozenset()
        return frozenset(self._wrote.get(tensor.untyped_storage().data_ptr(), ()))


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and not leaf.is_nested:
            yield leaf


def _mutated(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The arguments an op writes to, which it need not return."""
    schema = getattr(func, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))


def _moves_only(func: Any) -> bool:
    return str(func) in _COPIES or bool(getattr(func, "is_view", False))


def _frames(frame: FrameType | None, names: dict[int, str]) -> tuple[str | None, str | None]:
    """The user's line and the module that run right now."""
    where = module = None
    while frame is not None and frame.f_code is not _run.__code__:
        code = frame.f_code
        if where is None and not code.co_filename.startswith((_TORCH, _OURS)):
            line = linecache.getline(code.co_filename, frame.f_lineno).strip()
            where = f"{code.co_filename}:{frame.f_lineno}, in {code.co_name}:  {line}".rstrip(": ")
        if module is None and code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.nn.Module):
                kind = type(owner).__name__
                module = f"{names[id(owner)]} ({kind})" if names.get(id(owner)) else kind
        if where is not None and module is not None:
            break
        frame = frame.f_back
    return where, module


def _module_names(fn: Callable[..., Any]) -> dict[int, str]:
    if not isinstance(fn, torch.nn.Module):
        return {}
    return {id(module): name for name, module in fn.named_modules()}


def _short(tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("complex", "c"), ("uint", "u"), ("int", "i")):
        kind = kind.replace(long, short)
    return f"{kind}{list(tensor.shape)}"
