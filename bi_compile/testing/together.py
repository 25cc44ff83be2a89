"""Random models that share a compiled graph: the fixed costs of compiling are paid once for all of them.

Each has inputs and outputs of its own and is judged by itself, so the same is tested as one by one: no bit
of a model may depend on what else is in its graph.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.checking import OURS, check_model, leaves_graphs
from bi_compile.testing.compiling import compiled
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.subjects import BATCHES, Outcome, Result, RowDiffers, Subject, one_nan

SHARED = 10
"""Models of one graph."""

Verdict = Outcome | Exception
"""What `check_model` returns, or raises."""


def check_together(
    models: Sequence[RandomModel],
    *,
    backend: str = "batch_invariant",
    gradients: bool = False,
    alone: bool = False,
    dynamic: bool | None = None,
) -> list[Verdict]:
    """What `check_model` returns or raises for each of the models, which share compiled graphs.

    backend: one of torch.compile. gradients, alone, dynamic: as in `check_model`.
    A model that fails in a shared graph is checked by itself, so that its error has a program. Where it then
    passes, the error has a note that names the models whose company it needs. Models with code outside
    graphs, and those whose gradients no graph has, are checked by themselves in the first place.
    """
    how = _How(backend, gradients, alone, dynamic)
    verdicts: dict[int, Verdict] = {}
    shared: dict[bool, list[tuple[int, _Ready]]] = {True: [], False: []}
    for number, model in enumerate(models):
        subject = Subject.of(model, gradients=gradients)
        if isinstance(subject, Outcome):
            verdicts[number] = subject
            continue
        single = subject.canonical_alone(gradients=gradients) if backend == "batch_invariant" else None
        if leaves_graphs(model) or (gradients and backend == "batch_invariant" and single is None):
            verdicts[number] = _by_itself(model, how)
        else:
            # Models without results alone need a second graph, for one sample: they share it, too.
            shared[single is None].append((number, _Ready(subject, None if alone else single)))
    for members in shared.values():
        for start in range(0, len(members), SHARED):
            numbers, ready = zip(*members[start : start + SHARED], strict=True)
            found = _in_one_graph(ready, how)
            verdicts |= dict(zip(numbers, found, strict=True))
    return [verdicts[number] for number in range(len(models))]


class _Several(torch.nn.Module):
    def __init__(self, members: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(member(x) for member, x in zip(self.members, inputs, strict=True))


@dataclass(frozen=True)
class _How:
    """The options of `check_model`."""

    backend: str
    gradients: bool
    alone: bool
    dynamic: bool | None


@dataclass(frozen=True)
class _Ready:
    """single: the results of each sample alone, or None where the graph has to say."""

    subject: Subject
    single: list[Result] | None


def _in_one_graph(members: Sequence[_Ready], how: _How) -> list[Verdict]:
    if len(members) == 1:
        return [_by_itself(members[0].subject.model, how)]
    try:
        batches, rows = _results([one.subject for one in members], members[0].single, how)
    except Exception:
        # One of them is refused, or fails: half of them are looked at in a graph of their own.
        half = len(members) // 2
        parts = (members[:half], members[half:])
        return [found for part in parts for found in _in_one_graph(part, how)]
    verdicts: list[Verdict] = []
    for at, one in enumerate(members):
        single = one.single or [row[at] for row in rows]
        try:
            together = [batch[at] for batch in batches]
            verdicts.append(one.subject.judge(single, together, ours=how.backend in OURS))
        except Exception as error:
            verdicts.append(_failed(error, at, members, how))
    return verdicts


def _results(
    subjects: Sequence[Subject], single: Any, how: _How
) -> tuple[list[list[Result]], list[list[Result]]]:
    """The results of BATCHES and, without `single`, of each sample alone: of every subject in every call."""
    several = _Several([subject.module for subject in subjects])
    run = compiled(several, how.backend, dynamic=how.dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [_call(run, [s.batch(*batch) for s in subjects], how.gradients) for batch in BATCHES]
        samples = zip(*(subject.rows for subject in subjects), strict=True)
        rows = [] if single else [_call(run, sample, how.gradients) for sample in samples]
    return batches, rows


def _call(run: Any, inputs: Sequence[torch.Tensor], gradients: bool) -> list[Result]:
    if not gradients:
        with torch.no_grad():
            return [(one_nan(y),) for y in run(*inputs)]
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = run(*inputs)
    known = [(x, y) for x, y in zip(inputs, outputs, strict=True) if y.requires_grad]
    found = torch.autograd.grad(
        [y for _, y in known], [x for x, _ in known], [y.detach() for _, y in known], allow_unused=True
    )
    gradient = {id(y): one_nan(g) for (_, y), g in zip(known, found, strict=True) if g is not None}
    return [(one_nan(y.detach()), *([gradient[id(y)]] if id(y) in gradient else [])) for y in outputs]


def _by_itself(model: RandomModel, how: _How) -> Verdict:
    try:
        return check_model(model, **dataclasses.asdict(how))
    except Exception as error:
        return error


def _failed(failure: Exception, at: int, members: Sequence[_Ready], how: _How) -> Verdict:
    verdict = _by_itself(members[at].subject.model, how)
    if isinstance(verdict, Exception):
        return verdict
    error = failure.error if isinstance(failure, RowDiffers) else failure
    company = ",\n".join(f"    {one.subject.model!r}" for one in members)
    error.add_note(f"It passes by itself and fails, at {at}, in one graph with\n[\n{company},\n]")
    return error
