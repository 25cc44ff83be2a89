"""masked_scatter over a batch -> the same, after a look whether every sample takes what it brings.

The op hands out the elements of its source by a count over the whole tensor. Features of images that are put
in the places of their tokens come out right for every sample as long as each has as many such places as it
has features; else a sample is given those of its neighbours. Which of the two it is only the data tell.

Op
    bi_compile::matched_masked_scatter(Tensor x, Tensor mask, Tensor source, int rows) -> Tensor

    x: [B * rows, ...]; mask: bool, broadcast against x; source: of the dtype of x, the elements of the
    samples one after the other, equally many for each. Raises RuntimeError where a sample takes another
    number.
"""

from typing import Any

import torch
from torch import fx

from bi_compile.analysis.axes import Flow
from bi_compile.analysis.flow import BatchFlow

Tensor = torch.Tensor

_MESSAGE = (
    "masked_scatter mixes the samples of this batch: a sample's mask takes another number of elements than "
    "the source holds for it, and would be given those of its neighbours"
)

_library = torch.library.Library("bi_compile", "FRAGMENT")
_library.define("matched_masked_scatter(Tensor x, Tensor mask, Tensor source, int rows) -> Tensor")


def _matched(x: Tensor, mask: Tensor, source: Tensor, rows: int) -> Tensor:
    samples = x.shape[0] // rows
    if samples > 0:
        taken = mask.expand_as(x).reshape(samples, -1).sum(1)
        torch.ops.aten._assert_async.msg((taken * samples == source.numel()).all(), _MESSAGE)
    return x.masked_scatter(mask, source)


_library.impl("matched_masked_scatter", _matched, "CompositeExplicitAutograd")
torch.library.register_fake(
    "bi_compile::matched_masked_scatter", lambda x, mask, source, rows: torch.empty_like(x), lib=_library
)

_matched_op = torch.ops.bi_compile.matched_masked_scatter.default


def look_at_counts(graph: fx.Graph, flow: BatchFlow) -> bool:
    """Replace, in place, what `flow` found to lay samples beside samples; returns whether there was any."""
    changed = False
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.masked_scatter.default):
        known = flow.flows.get(node)
        if node in flow.findings or not isinstance(known, Flow) or not known.axes:
            continue
        rows: Any = known.axes[0].inner.number
        with graph.inserting_before(node):
            matched = graph.call_function(_matched_op, (*node.args, rows))
        matched.meta = dict(node.meta)
        flow.flows[matched] = known
        node.replace_all_uses_with(matched)
        graph.erase_node(node)
        changed = True
    return changed
