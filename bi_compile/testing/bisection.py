"""`bisect`: the first op whose bits differ between a sample alone and the same sample in a batch.

Both runs record every op. The ops are matched in order, and from the differing output we walk back through
ops whose own results differ: an op that differs and is not to be seen in the output (`arange` over the batch)
is none of them, and the earliest one is where the difference arises. The ops of compiled graphs cannot be
seen: where no op differs by itself, the function is run as it is, and its outputs are compared as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from bi_compile.testing.arguments import require_callable
from bi_compile.testing.batches import Batch, Pool, require_drawing
from bi_compile.testing.matching import Changes, Runs, behind
from bi_compile.testing.outputs import call
from bi_compile.testing.recording import Op, Recording, record
from bi_compile.testing.searching import Found, changed, first_difference


@dataclass(frozen=True, repr=False)
class FirstDifference:
    """Where a sample's bits part from those it has alone. `str()` of it is the whole story."""

    what: str
    op: str | None
    """The op, as PyTorch spells it: `aten.addmm.default`; None where no op can be named."""
    where: str | None
    """The user's line: `model.py:42, in forward:  x = self.head(x)`."""
    module: str | None
    """The module: `head (Linear)`."""
    members: tuple[int, ...]
    """The samples of the batch, in order."""
    position: int
    element: tuple[int, ...] | None
    """The first element of the op's result, or of the output, for the sample that differs."""
    ulps: float | None
    """The distance of its two values; None where it has none."""
    neighbours: tuple[int, ...] | None
    """Positions without which the op's bits are those alone; () if the size suffices; None if unknown."""
    details: tuple[str, ...]

    @property
    def sample(self) -> int:
        return self.members[self.position]

    def __repr__(self) -> str:
        return f"<FirstDifference: {self.op or 'no op'}, {self.where or self.module}>"

    def __str__(self) -> str:
        return "\n  ".join([self.what, *self.details])


def bisect(
    fn: Callable[..., Any],
    *inputs: Any,
    batch_dims: int | Sequence[int | None] = 0,
    sizes: Sequence[int] = (2, 3, 4, 7, 8, 16, 33),
    trials: int = 2,
    neighbours: Sequence[float] = (float("nan"), float("inf"), 3e4, 0.0),
    under: Callable[[], AbstractContextManager] | None = None,
    seed: int = 0,
) -> FirstDifference | None:
    """Name the first op whose bits for a sample change with its batch.

    None if no output changes, neither op by op nor, as far as that is something else, in compiled graphs.

        print(bisect(model, inputs))
        print(bisect(model, inputs, under=bi_compile.eager))

    fn, inputs, batch_dims, sizes, trials, neighbours, seed: as in `assert_batch_invariant`, and the batches
        are the same ones: `seed` and `sizes` of its message show the same failure here. All samples have one
        length: there is no padding.
    under: a context in which fn is run, such as `bi_compile.eager`; the ops are those that reach PyTorch
        below it. Without it they are those of eager PyTorch.

    The result of `torch.compile` is run without its compiler, op by op, here or anywhere in fn: the ops of a
    compiled graph cannot be seen. For backend="batch_invariant", `under=bi_compile.eager` runs the same
    canonical ops; for any other backend the op is named that eager PyTorch varies, which need not be the
    compiled graph's. Where no op varies, fn is run as it is, compiled graphs included (with `under`, only if
    fn itself is the result of `torch.compile`): a difference then names the output and no op.

    Ops are seen below autograd. Views and copies compute nothing and are passed over; sparse and nested
    tensors are not compared. All results of two runs are held in memory.

    Raises VacuousCheckError where nothing can share a batch, or an output has no batch dimension.
    """
    pool = Pool.of(inputs, batch_dims, None)
    require_drawing(pool, sizes=sizes, trials=trials, neighbours=neighbours, seed=seed)
    require_callable("fn", fn)
    target = _without_compiler(fn)
    note = () if target is fn else ("run op by op without torch.compile: these are not the compiled ops",)

    def run(batch: Batch) -> Recording:
        return record(target, pool, batch, under)

    def run_whole(batch: Batch) -> Recording:
        return Recording(outputs=call(fn, pool, batch)[0])

    def batches() -> Iterator[Batch]:
        for size in sizes:
            yield from pool.draw(size, trials=trials, neighbours=neighbours, seed=seed)

    if found := first_difference(pool, run, batches()):
        return _explain(found, run, note)
    if under is not None and target is fn:
        return None
    found = first_difference(pool, run_whole, batches())
    return _no_op(found, _whole(found, pool, run_whole)) if found else None


def _without_compiler(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.compile` was given, if fn is its result."""
    return getattr(fn, "_orig_mod", None) or getattr(fn, "_torchdynamo_orig_callable", None) or fn


def _explain(found: Found, run: Callable[[Batch], Recording], note: tuple[str, ...]) -> FirstDifference:
    runs, output = found.runs, found.output
    changes = runs.changes()
    parted = runs.parted()
    if parted is not None:
        return _other_ops(runs, *parted, changes, note)
    numbers, unknown = behind(runs.together, runs.together.writers.get(output, frozenset()), changes)
    if not numbers:
        why = "else the difference arises outside PyTorch's ops, or comes and goes between equal runs"
        return _no_op(found, (*_unknown(runs.together, unknown), why, *note))
    number = min(numbers)
    op, change = runs.together.ops[number], changes[number]
    assert change != "unknown"
    compared = runs.together.compared()
    single = runs.alone.ops[runs.alone.compared()[compared.index(number)]]

    def differs(other: Runs) -> bool | None:
        return None if other.parted() else number in other.changes()

    matter = _neighbours(runs, run, differs)
    _, unknown = behind(runs.together, op.sources, changes)
    details = [
        *_place(op),
        f"op {compared.index(number) + 1} of {len(compared)}; inputs alone {single.signature}",
        f"inputs in the batch {op.signature}",
        *_who(runs),
        change.describe(),
        _told(runs, matter),
        *_unknown(runs.together, unknown),
        *note,
    ]
    return FirstDifference(
        f"{op.name} is the first op {'seen to' if unknown else 'whose bits'} change with the batch",
        op.name,
        op.where,
        op.module,
        runs.batch.members,
        runs.position,
        change.element,
        change.distance,
        matter,
        tuple(details),
    )


def _neighbours(
    runs: Runs, run: Callable[[Batch], Recording], differ: Callable[[Runs], bool | None]
) -> tuple[int, ...] | None:
    """Positions that must be taken by other samples for runs to differ; () if copies of the sample do."""
    batch, sample = runs.batch, runs.batch.members[runs.position]

    def differs(members: Sequence[int]) -> bool | None:
        tried = Batch(tuple(members), batch.kept, None, None, "tried")
        return differ(Runs(tried, runs.position, run(tried), runs.alone))

    copies = differs([sample] * len(batch.members))
    if copies is None or copies:
        return None if copies is None else ()
    if batch.hostile is not None:
        return tuple(p for p in range(len(batch.members)) if p not in batch.kept)
    matter = []
    for place, member in enumerate(batch.members):
        replaced = [*batch.members[:place], sample, *batch.members[place + 1 :]]
        if member != sample and differs(replaced) is False:
            matter.append(place)
    return tuple(matter) or None


def _told(runs: Runs, matter: tuple[int, ...] | None) -> str:
    if matter is None:
        return "no single neighbour makes the difference"
    if not matter:
        return (
            f"the size matters, not the neighbours: {len(runs.batch.members)} copies of the sample differ too"
        )
    who = ", ".join(f"{place} (sample {runs.batch.members[place]})" for place in matter)
    if runs.batch.hostile is not None:
        return f"the neighbours matter: {runs.batch.hostile} at position {', '.join(map(str, matter))}"
    return f"the neighbours matter: it is gone when the sample itself stands at position {who}"


def _other_ops(
    runs: Runs,
    count: int,
    ours: Op | None,
    theirs: Op | None,
    changes: Changes,
    note: tuple[str, ...],
) -> FirstDifference:
    many, one = len(runs.together.compared()), len(runs.alone.compared())
    named = next((runs.together.ops[n] for n, change in changes.items() if change != "unknown"), None)
    earlier = [f"before that, {named.name} differs already: {named.place}"] if named else []
    op = ours or theirs
    assert op is not None
    return FirstDifference(
        f"the batch and the sample alone run different ops after {count} alike",
        op.name,
        op.where,
        op.module,
        runs.batch.members,
        runs.position,
        None,
        None,
        None,
        (
            f"{many} ops in the batch, {one} alone",
            f"in the batch then {_step(ours)}",
            f"alone then {_step(theirs)}",
            *earlier,
            *_who(runs),
            *note,
        ),
    )


def _whole(found: Found, pool: Pool, run: Callable[[Batch], Recording]) -> tuple[str, ...]:
    """What can be told of a difference that no op has by itself."""
    runs, name = found.runs, found.output

    def differ(other: Runs) -> bool:
        outputs, alone = other.together.outputs, other.alone.outputs[name]
        return changed(pool, outputs.get(name), alone, found.dim, other.batch, other.position) != "same"

    why = "op by op, without torch.compile, no output changes: the compiled graph as a whole does"
    return _told(runs, _neighbours(runs, run, differ)), why


def _no_op(found: Found, why: tuple[str, ...]) -> FirstDifference:
    runs, change = found.runs, found.change
    return FirstDifference(
        f"{found.output} changes with the batch, and no op can be named",
        None,
        None,
        None,
        runs.batch.members,
        runs.position,
        change.element if change else None,
        change.distance if change else None,
        None,
        (*_who(runs), change.describe() if change else "it has another form in the batch", *why),
    )


def _place(op: Op) -> list[str]:
    return [*([op.where] if op.where else []), *([f"module {op.module}"] if op.module else [])]


def _who(runs: Runs) -> list[str]:
    sample = runs.batch.members[runs.position]
    return [
        f"sample {sample} at position {runs.position} of a batch of {len(runs.batch.members)}, "
        f"{runs.batch.describe(runs.position)}"
    ]


def _unknown(recording: Recording, numbers: set[int]) -> list[str]:
    ops = [recording.ops[number] for number in sorted(numbers)]
    return [f"not compared, its shape does not tell the samples apart: {op.name}, {op.place}" for op in ops]


def _step(op: Op | None) -> str:
    return "nothing" if op is None else f"{op.name} on {op.signature}, {op.place}"
