"""What torch.compile calls for `backend="batch_invariant"`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from bi_compile import allowed, dynamo, dynamo_sizes, inductor
from bi_compile.analysis.flow import follow
from bi_compile.batch import Dims, batch_dims
from bi_compile.debug import Dump
from bi_compile.dynamo_tracing import trace_recurrent_modules
from bi_compile.eager_mode import OutsideGraphs
from bi_compile.errors import BatchInvariantError
from bi_compile.inputs import user_inputs
from bi_compile.options import Options
from bi_compile.passes.associations import ASSOCIATIONS, path_settings
from bi_compile.passes.capture import capture
from bi_compile.passes.dropout import place_batch, run_unplaced
from bi_compile.passes.epilogue import join_products_and_epilogues
from bi_compile.passes.in_place import keep_what_is_read
from bi_compile.passes.isolation import isolate
from bi_compile.passes.masked_scatter import look_at_counts
from bi_compile.passes.residual import join_sums_and_norms
from bi_compile.pipeline import decompositions, fingerprint
from bi_compile.report import UNKNOWN, is_open, record_compilation, record_graph
from bi_compile.verify import has_no_lowering, verify

trace_recurrent_modules()


def batch_invariant(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph from Dynamo so that every sample gets the same bits whatever shares its batch.

    mode, options: as given to torch.compile; see `bi_compile.options.Options`.
    Raises errors of `bi_compile.errors`, which Dynamo wraps in BackendCompilerFailed.
    """
    parsed = Options.parse(options)
    inductor.refuse_foreign_devices(example_inputs)
    inductor.refuse_disabled_check(parsed.inductor)
    inductor.require_compiler()
    dynamo.watch_recompile_limit()
    dynamo.notice_flushed_subnormals()
    dynamo_sizes.make_batch_dynamic(module)
    record_compilation()
    questions = dynamo.tell_questions(module.graph)

    inputs = user_inputs(module.graph)
    dims = batch_dims([entry.tensor for entry in inputs])
    guesses = tuple(entry.shared_by_guess(own) for entry, own in zip(inputs, dims, strict=True))
    dump = Dump(parsed.dump, module, dims, questions)
    dump.graph("captured", module.graph)
    capture(module)
    dump.graph("whole_ops", module.graph)
    compiled = inductor.compile_graph(
        module,
        example_inputs,
        settings={**inductor.mode_options(mode), **parsed.inductor},
        decompositions=decompositions(parsed.dropout),
        traced=lambda graph, direction: dump.graph(f"traced_{direction}", graph),
        verify=functools.partial(_verify, options=parsed, dump=dump, dims=dims, guesses=guesses),
        generated=dump.kernels,
        key=f"{fingerprint()}-{parsed.on_unsupported}-{parsed.dropout}-{dims}-{guesses}-{allowed.fingerprint()}"
        f"-{path_settings()}",
        # Warnings, dumps and verdicts come from the passes, and a cached graph runs none.
        cached=parsed.on_unsupported == "error" and not dump.on and not is_open(),
    )
    return dynamo.graph_alone(compiled)


def _verify(graph: fx.Graph, *, options: Options, dump: Dump, dims: Dims, guesses: tuple[bool, ...]) -> bool:
    """Whether there is nothing to tell about a final graph, which is finished here."""
    dump.graph("final", graph)
    flow = follow(graph, dims)
    placed = place_batch(graph, flow, guesses) | look_at_counts(graph, flow)
    if isolate(graph, flow, has_no_lowering, guesses) or placed:
        dump.graph("isolated", graph)
    try:
        verdicts = verify(graph, options.on_unsupported, flow)
    except BatchInvariantError:
        if dump.on:
            dump.verified(graph, verify(graph, "ignore", flow), flow)
        raise
    record_graph(dump.verified(graph, verdicts, flow))
    run_unplaced(graph)
    # The norms first: what is left of sums may follow on a product.
    if any([join_sums_and_norms(graph), join_products_and_epilogues(graph)]):
        dump.graph("joined", graph)
    if keep_what_is_read(graph):
        dump.graph("copied", graph)
    return all(verdict.kind != UNKNOWN for verdict in verdicts)


dynamo.watch(batch_invariant, outside=OutsideGraphs, in_place_of=ASSOCIATIONS)
