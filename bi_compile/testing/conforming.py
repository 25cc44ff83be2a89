"""The suite that a canonical op must pass, from a description of its samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.arguments import require_one_of, require_sequence
from bi_compile.testing.bits import as_integers
from bi_compile.testing.compiling import compiled
from bi_compile.testing.invariance import assert_batch_invariant
from bi_compile.testing.layouts import LAYOUTS
from bi_compile.testing.messages import VacuousCheckError
from bi_compile.testing.outputs import copied
from bi_compile.testing.trees import map_tensors

Arguments = tuple[Any, ...]
Function = Callable[..., Any]


class ConformanceError(AssertionError):
    """An op does not keep what a canonical op promises: every check that failed, with its reason."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        lines = [f"  {name}: {reason}" for name, reason in failures.items()]
        super().__init__("\n".join([f"{len(lines)} checks failed", *lines]))


@dataclass(frozen=True)
class _Suite:
    op: Function
    samples: Sequence[Arguments]
    stock: Function
    oracle: Function | None
    batch_dims: int | Sequence[int | None]
    sizes: Sequence[int]


def conformance(
    op: Function,
    samples: Sequence[Arguments],
    *,
    stock: Function,
    oracle: Function | None = None,
    batch_dims: int | Sequence[int | None] = 0,
    sizes: Sequence[int] = (1, 2, 3, 7, 16, 33),
    checks: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Assert that an op keeps what a canonical op promises.

    op: takes the arguments of one entry of `samples` and returns a tensor, or a tree of them.
    samples: tuples of arguments, each a pool of at least two samples stacked along `batch_dims`; several of
        them for several dtypes and sizes. Order-sensitive values (`bi_compile.testing.values`) and odd sizes
        make the checks sharp.
    stock: what PyTorch computes for the same arguments: the control, which must change bits with the batch or
        the layout for one of the samples at least, and in float64 the reference.
    oracle: the same tree in plain torch ops; its bits must be the op's.
    batch_dims: the batch dimension of all arguments, or one for each; None for an argument all samples share.
    sizes: of batches. checks: the names of those to make; all by default.

    The checks: *batch* (a row alone, in batches, beside NaN, inf, 3e4 and 0, and its error against float64),
    *oracle*, *layout* (transposed, offset and strided arguments with NaN beside them), *threads* (one and
    two), *repeat*, *compiled* (with our backend), *fake* (shapes and dtypes under tracing; of ops of
    `torch.library` only), *control*.
    Returns the names of the checks that were made. Raises ConformanceError with all that failed,
    VacuousCheckError where nothing was compared, ValueError for a check that is not there.
    """
    require_sequence("samples", samples)
    if not samples:
        raise VacuousCheckError(
            "samples is empty: no check has anything to compare",
            hint="pass tuples of arguments, such as [(values('wide', (8, 301), torch.float32, 0), 1)].",
        )
    for name in checks or ():
        require_one_of("checks", name, list(CHECKS))
    suite = _Suite(op, samples, stock, oracle, batch_dims, sizes)
    failures, made = {}, []
    for name in checks or CHECKS:
        try:
            if CHECKS[name](suite) is not False:
                made.append(name)
        except Exception as error:
            text = str(error).strip()
            failures[name] = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    if failures:
        raise ConformanceError(failures)
    if not made:
        raise VacuousCheckError(
            f"none of the checks {', '.join(checks or CHECKS)} has anything to compare",
            hint="`oracle` needs an oracle, `fake` an op of torch.library.",
        )
    return tuple(made)


def _batch(suite: _Suite) -> None:
    for arguments in suite.samples:
        assert_batch_invariant(
            suite.op,
            *arguments,
            batch_dims=suite.batch_dims,
            sizes=suite.sizes,
            trials=1,
            reference=suite.stock,
        )


def _oracle(suite: _Suite) -> bool | None:
    if suite.oracle is None:
        return False
    for arguments in suite.samples:
        _require_same(suite.op(*arguments), suite.oracle(*arguments), "the oracle has other bits")
    return None


def _layout(suite: _Suite) -> None:
    for arguments in suite.samples:
        want = suite.op(*arguments)
        for name, strided in _layouts(arguments):
            _require_same(suite.op(*strided), want, f"{name} arguments have other bits")


def _threads(suite: _Suite) -> None:
    threads = torch.get_num_threads()
    try:
        for arguments in suite.samples:
            torch.set_num_threads(1)
            one = suite.op(*arguments)
            torch.set_num_threads(2)
            _require_same(suite.op(*arguments), one, "two threads have other bits than one")
    finally:
        torch.set_num_threads(threads)


def _repeat(suite: _Suite) -> None:
    for arguments in suite.samples:
        _require_same(suite.op(*arguments), suite.op(*arguments), "a second call has other bits")


def _compiled(suite: _Suite) -> None:
    run = compiled(suite.op, "batch_invariant")
    for arguments in suite.samples[:1]:  # a graph takes seconds, and the others would be the same
        _require_same(run(*arguments), suite.op(*arguments), "the compiled graph has other bits")


def _fake(suite: _Suite) -> bool | None:
    if not isinstance(suite.op, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return False
    op = suite.op.default if isinstance(suite.op, torch._ops.OpOverloadPacket) else suite.op
    for arguments in suite.samples:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    return None


def _control(suite: _Suite) -> None:
    stock = _Suite(suite.stock, suite.samples, suite.stock, None, suite.batch_dims, suite.sizes)
    for check in (_batch, _layout):
        try:
            check(stock)
        except VacuousCheckError:
            continue  # what shows nothing is no failure
        except AssertionError:
            return
    raise VacuousCheckError(
        "stock PyTorch passes all checks on these samples, so passing them shows nothing",
        hint="take larger, odd sizes and order-sensitive values.",
    )


CHECKS: dict[str, Callable[[_Suite], bool | None]] = {
    "batch": _batch,
    "oracle": _oracle,
    "layout": _layout,
    "threads": _threads,
    "repeat": _repeat,
    "compiled": _compiled,
    "fake": _fake,
    "control": _control,
}
"""Name -> check; False where it has nothing to check."""


def _layouts(arguments: Arguments) -> Iterator[tuple[str, Arguments]]:
    for name, layout in LAYOUTS.items():
        if name != "contiguous":
            yield name, map_tensors(arguments, lambda x, change=layout: change(x) if x.dim() else x)


def _require_same(found: Any, wanted: Any, what: str) -> None:
    ours, theirs = (copied(tree)[0] for tree in (found, wanted))
    if not ours:
        raise VacuousCheckError("no tensor is returned", hint="return tensors, or a tree of them.")
    if len(ours) != len(theirs):
        raise AssertionError(f"{what}: {len(ours)} tensors and {len(theirs)}")
    for (name, x), y in zip(ours.items(), theirs.values(), strict=True):
        if not (x.shape == y.shape and x.dtype == y.dtype and torch.equal(as_integers(x), as_integers(y))):
            raise AssertionError(f"{what}: {name} {tuple(x.shape)} {x.dtype}")
