"""`assert_batch_invariant`: every sample alone, then in batches, compared bit by bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.accuracy import Accuracy, measure_accuracy
from bi_compile.testing.arguments import require_callable, require_number
from bi_compile.testing.batches import Batch, Pool, require_drawing
from bi_compile.testing.bits import as_integers, differing, ulps
from bi_compile.testing.messages import BatchVarianceError, InaccurateResultError, VacuousCheckError
from bi_compile.testing.outputs import Outputs, apart, batch_dims_of_outputs, call, row_of, shown
from bi_compile.testing.padding import Pad


@dataclass(frozen=True)
class InvarianceReport:
    """What a passed check did."""

    samples: int
    batches: int
    rows: int
    """Output rows compared with the sample's own result alone."""
    elements: int
    sizes: tuple[int, ...]
    seed: int
    control: str | None
    """First line of what the control failed with; None without a control."""
    accuracy: Accuracy | None
    """Errors against float64; None without a reference."""
    ignored: tuple[str, ...]
    """Outputs that are no tensors and no numbers, and were not compared."""


def assert_batch_invariant(
    fn: Callable[..., Any],
    *inputs: Any,
    batch_dims: int | Sequence[int | None] = 0,
    sizes: Sequence[int] = (1, 2, 3, 4, 7, 8, 16, 33),
    trials: int = 2,
    neighbours: Sequence[float] = (float("nan"), float("inf"), 3e4, 0.0),
    padding: Pad | None = None,
    control: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | None = None,
    tolerance: float = 1.5,
    seed: int = 0,
) -> InvarianceReport:
    """Assert that every sample gets the same bits alone and in any batch.

    fn: called with the inputs of a batch. Returns a tensor, or a tuple, list, mapping or dataclass of them;
        in each output tensor, one dimension must grow with the batch (it is found by probing).
    inputs: a pool of samples, each tensor stacking n >= 2 of them along its batch dimension; any dtype.
        Nested containers are cut leaf by leaf; anything that is no tensor is passed through.
    batch_dims: the batch dimension of all inputs, or one per input; None for an input shared by all samples.
    sizes: batch sizes. Sizes above n repeat samples.
    trials: batches of each size with other samples as neighbours: random members, order and positions.
    neighbours: for each size and each of these values, one more batch in which the floating-point inputs of
        some rows hold nothing but the value, and the rows beside them are compared.
    padding: lengths of the samples and how to pad them; see `Pad`. Without it all samples have one length.
    control: a callable expected to fail the same check, usually the model without batch invariance.
        If it passes, so would anything, and VacuousCheckError is raised.
    reference: a correctness partner: a module or callable run in float64, sample by sample. Its outputs are
        matched with those of fn by name, or by place where it returns another container. fn's root mean
        square error against it may be at most `tolerance` times that of the control (without one: of
        the reference itself in the inputs' own dtype), plus half an ulp of the largest value; the
        largest single error, compared likewise, may be four times as far.
    seed: decides which batches are drawn. A failure names the seed and the size that show it again.

    Returns an InvarianceReport of what was compared.
    Raises BatchVarianceError at the first batch in which a row's bits differ (it names the sample, its
    position, the element, both values and their distance in ulps), VacuousCheckError when the check could not
    have failed, InaccurateResultError when the reference is missed, ValueError or TypeError for an argument
    that cannot be meant, and where the outputs of fn and of the reference or control cannot be matched.
    """
    __tracebackhide__ = True  # pytest then shows the user's line above the message
    pool = Pool.of(inputs, batch_dims, padding)
    require_drawing(pool, sizes=sizes, trials=trials, neighbours=neighbours, seed=seed)
    require_number("tolerance", tolerance, least=0)
    for name, given in (("fn", fn), ("control", control), ("reference", reference)):
        if given is not None or name == "fn":
            require_callable(name, given)
    check = _Check(pool, tuple(sizes), trials, tuple(neighbours), seed)
    counts, alone, ignored = check.run(fn)
    shown = None if control is None else _failure_of(control, check)
    accuracy = None
    if reference is not None:
        accuracy = measure_accuracy(pool, alone, reference=reference, stock=control or reference)
        _require_accurate(accuracy, tolerance)
    return InvarianceReport(pool.size, *counts, check.sizes, seed, shown, accuracy, ignored)


@dataclass(frozen=True)
class _Check:
    pool: Pool
    sizes: tuple[int, ...]
    trials: int
    neighbours: tuple[float, ...]
    seed: int

    def run(self, fn: Callable[..., Any]) -> tuple[tuple[int, int, int], list[Outputs], tuple[str, ...]]:
        """Compare all batches; returns (batches, rows, elements), the results alone, the ignored outputs."""
        __tracebackhide__ = True
        pool = self.pool
        called = [call(fn, pool, pool.alone(sample)) for sample in range(pool.size)]
        alone, ignored = [outputs for outputs, _ in called], called[0][1]
        for sample, outputs in enumerate(alone):
            if outputs.keys() != alone[0].keys():
                names = [", ".join(found) or "no tensor" for found in (outputs, alone[0])]
                raise ValueError(f"fn returns {names[0]} for sample {sample}, but {names[1]} for sample 0")
        _refuse_vacuous(alone)
        dims = batch_dims_of_outputs(lambda batch: call(fn, pool, batch)[0], pool, alone[0])
        batches = rows = elements = 0
        for size in self.sizes:
            drawn = pool.draw(size, trials=self.trials, neighbours=self.neighbours, seed=self.seed)
            for batch in drawn:
                outputs, _ = call(fn, pool, batch)
                elements += self._compare(outputs, alone, dims, batch)
                batches += 1
                rows += len(batch.kept) * len(dims)
        return (batches, rows, elements), alone, ignored

    def _compare(self, outputs: Outputs, alone: list[Outputs], dims: dict[str, int], batch: Batch) -> int:
        __tracebackhide__ = True
        pool, elements = self.pool, 0
        for name, dim in dims.items():
            bad: list[tuple[int, torch.Tensor, torch.Tensor]] = []
            for position in batch.kept:
                sample = batch.members[position]
                expected = alone[sample][name]
                row = row_of(pool, outputs.get(name), dim, position=position, batch=batch, expected=expected)
                if row is None or row.shape != expected.shape or row.dtype != expected.dtype:
                    raise self._other_form(name, batch, position, expected, outputs.get(name))
                elements += row.numel()
                if not torch.equal(as_integers(row), as_integers(expected)):
                    bad.append((position, expected, row))
            if bad:
                raise self._variance(name, batch, bad)
        return elements

    def _variance(self, name: str, batch: Batch, bad: list) -> BatchVarianceError:
        position, expected, row = bad[0]
        differ = differing(expected, row)
        first = tuple(differ.nonzero()[0].tolist()) if differ.dim() else ()
        distance = ulps(expected, row)
        count = sum(int(differing(e, r).sum()) for _, e, r in bad)
        distances = torch.cat([ulps(e, r)[differing(e, r)].flatten() for _, e, r in bad])
        numbers = distances[~distances.isnan()]
        most = f", by at most {float(numbers.max()):.0f} ulps" if numbers.numel() else ""
        details = [
            self._where(batch, position),
            batch.describe(position),
            f"first difference at {list(first)}: alone {shown(expected[first])}, "
            f"in the batch {shown(row[first])}{apart(distance[first])}",
            f"{len(bad)} of the {len(batch.kept)} rows compared differ in this batch, in {count} of "
            f"{len(batch.kept) * expected.numel()} elements{most}",
        ]
        return BatchVarianceError(
            f"{name} of sample {batch.members[position]} changes with the batch",
            details=details,
            hint=self._hint(batch),
        )

    def _other_form(self, name: str, batch: Batch, position: int, expected: torch.Tensor, output: Any):
        got = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, torch.Tensor) else "missing"
        return BatchVarianceError(
            f"{name} of sample {batch.members[position]} has another form in the batch",
            details=[
                self._where(batch, position),
                f"alone {tuple(expected.shape)} {expected.dtype}, the whole batch {got}",
            ],
            hint=self._hint(batch),
        )

    def _where(self, batch: Batch, position: int) -> str:
        padded = "" if batch.length is None else f", all padded to length {batch.length}"
        return f"batch of {len(batch.members)} ({batch.trial}), the sample at position {position}{padded}"

    def _hint(self, batch: Batch) -> str:
        return f"this batch is drawn again by seed={self.seed}, sizes=({len(batch.members)},)."


def _refuse_vacuous(alone: list[Outputs]) -> None:
    floating = [name for name, value in alone[0].items() if value.is_floating_point() or value.is_complex()]
    if not floating:
        names = ", ".join(f"{name} {value.dtype}" for name, value in alone[0].items()) or "no tensor at all"
        raise VacuousCheckError(
            f"no output is floating-point: {names}",
            hint="return the values before they are rounded to integers (logits, not argmax).",
        )
    for name in floating:
        first = alone[0][name]
        for other in (outputs.get(name) for outputs in alone[1:]):
            same = (
                other is not None and other.shape == first.shape and not bool(differing(first, other).any())
            )
            if not same:
                return
    raise VacuousCheckError(
        f"all {len(alone)} samples give the same output",
        hint="pass samples that differ, and check that fn uses its inputs.",
    )


def _failure_of(control: Callable[..., Any], check: _Check) -> str:
    try:
        check.run(control)
    except BatchVarianceError as failure:
        return failure.what
    except VacuousCheckError as nothing:
        raise VacuousCheckError(f"of the control: {nothing.what}", hint=nothing.hint) from None
    raise VacuousCheckError(
        "the control passes the same check, so passing it shows nothing",
        hint="take a control that is not batch-invariant (the model without bi_compile), larger or "
        "order-sensitive inputs, more sizes, or leave control out.",
    )


def _require_accurate(accuracy: Accuracy, tolerance: float) -> None:
    for name, error in accuracy.errors.items():
        allowed = tolerance * accuracy.stock_errors[name] + accuracy.roundings[name]
        if not error <= allowed:
            raise InaccurateResultError(
                f"{name} is farther from the float64 reference than stock is",
                details=[
                    f"root mean square error {error:.3g}, stock's {accuracy.stock_errors[name]:.3g}, allowed "
                    f"{allowed:.3g} ({tolerance} times stock's plus half an ulp of the largest value)"
                ],
                hint="the results are invariant but wrong: look for a missing term or a lower precision.",
            )
        # The largest of a few errors is decided by luck; four times as far is none.
        outlier = 4 * (tolerance * accuracy.stock_largest[name] + accuracy.roundings[name])
        if not accuracy.largest[name] <= outlier:
            raise InaccurateResultError(
                f"single elements of {name} are far from the float64 reference",
                details=[
                    f"largest error {accuracy.largest[name]:.3g}, "
                    f"stock's {accuracy.stock_largest[name]:.3g}, "
                    f"allowed {outlier:.3g}"
                ],
                hint="the results are invariant but wrong in places: look for an edge that is treated apart.",
            )
