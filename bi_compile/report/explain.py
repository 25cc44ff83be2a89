"""`explain(model)(*inputs)`: what would be done to a model, and everything that stands in its way at once."""

from collections.abc import Callable, Iterator
from typing import Any

from bi_compile.errors import BatchInvariantError
from bi_compile.report import Report, collect


def explain(model: Callable[..., Any]) -> Callable[..., Report]:
    """A function that takes the inputs of `model` (a function or module) and returns the report on it.

    The model is traced anew, its graphs are checked as for `backend="batch_invariant"`, and it is run once,
    op by op: no code is generated. What that backend would refuse does not stop it: all refused ops are in
    the report, with reasons. Raises what the model itself raises. Dynamo forgets earlier results.
    """
    model = getattr(model, "_orig_mod", getattr(model, "_torchdynamo_orig_callable", model))

    def run(*args: Any, **kwargs: Any) -> Report:
        import torch
        from torch.utils._pytree import tree_leaves

        from bi_compile import dynamo_sizes, inductor
        from bi_compile.backend import batch_invariant

        torch.compiler.reset()
        # So that the batch is seen in a frame, too, that asks for its size before it computes anything.
        dynamo_sizes.trace_batch_dynamic(tree_leaves((args, kwargs)))
        with collect(_name(model)) as report, inductor.graphs_only():
            compiled = torch.compile(model, backend=batch_invariant, options={"on_unsupported": "ignore"})
            try:
                compiled(*args, **kwargs)
            except Exception as error:
                ours = next((e for e in _chain(error) if isinstance(e, BatchInvariantError)), None)
                if ours is None:
                    raise
                report.error = f"{type(ours).__name__}: {ours}"
        torch.compiler.reset()
        return report

    return run


def _name(model: Callable[..., Any]) -> str:
    return getattr(model, "__name__", None) or type(model).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
