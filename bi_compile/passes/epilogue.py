"""A product of matrices and the pointwise ops that follow -> one op, on CUDA devices.

Activations stand in a final graph as the operations they are made of, so none is looked for by name: what is
joined is every pointwise op between one product, or its two halves, and ops of ours, or the caller, that read
only the last of them. Each keeps its rounding, so the bits are those of the ops run one by one.
"""

import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import fx

from bi_compile.passes.residual import in_memory, is_ours, is_view
from bi_compile.templates.contraction import epilogue
from bi_compile.templates.contraction.epilogue import Step

aten = torch.ops.aten
bi = torch.ops.bi_compile

_PRODUCTS = {op.default for op in (bi.linear, bi.mm, bi.bmm, bi.addmm, bi.baddbmm, bi.grouped_mm)}
_WITH_EPILOGUE: dict[Any, Any] = {
    bi.linear.default: bi.linear_epilogue.default,
    bi.grouped_mm.default: bi.grouped_mm_epilogue.default,
}
"""Products that hand all their arguments on; the others become one op by their rank."""
_DEVICES = ("cuda",)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STEPS: dict[Any, str] = {
    **{getattr(aten, name).Tensor: name for name in epilogue.ARITHMETIC},
    **{getattr(aten, name).Scalar: name for name in epilogue.COMPARISONS},
    **{getattr(aten, name).default: name for name in ("neg", *epilogue.FUNCTIONS)},
    aten.where.self: "where",
    torch.ops.prims.convert_element_type.default: "",
}
"""Op -> its step; that of a cast is named by the dtype."""


class _Join(NamedTuple):
    """What becomes one op."""

    product: fx.Node
    viewed: fx.Node
    """Itself, or a view of it."""
    read: tuple[fx.Node, ...]
    """What the steps read of it: that, or its left and its right half."""
    cut: tuple[fx.Node, ...]
    """What cuts it, the last first."""
    other: fx.Node | None
    steps: list[fx.Node]
    """In their order in the graph."""


def join_products_and_epilogues(graph: fx.Graph) -> bool:
    """Changes a final graph; returns whether it did.

    Left alone where Inductor reads the result in a kernel of its own, which computes the steps as well, and
    where something else reads the product, as the gradient of most activations does.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    changed = False
    # From the end, where it is settled which ops read from memory.
    for last in reversed(list(graph.nodes)):
        if last in places and last.target in _STEPS and _is_value(last) and _reads_memory(last.users):
            join = _joined(last, places)
            if join is not None:
                _replace(graph, join, last, places)
                changed = True
    return changed


def _joined(last: fx.Node, places: dict[fx.Node, int]) -> _Join | None:
    steps, leaves = _cone(last, places)
    products = [leaf for leaf in leaves if _is_product(_behind_view(leaf), leaf, steps)]
    if products:
        viewed = max(products, key=places.__getitem__)
        read, cut = (viewed,), ()
    else:
        halves = next((found for leaf in leaves if (found := _halves(leaf, steps))), None)
        if halves is None:
            return None
        viewed, read, cut = halves
    rest = [leaf for leaf in leaves if leaf not in read]
    other = rest[0] if rest else None
    if len(rest) > 1 or len(steps) > epilogue.MOST_STEPS:
        return None
    if other is not None and not (_alike(other, read[0]) and _in_rows(other) and in_memory(other)):
        return None
    join = _Join(_behind_view(viewed), viewed, read, cut, other, steps)
    return join if _program(join) is not None else None


def _halves(
    leaf: fx.Node, steps: list[fx.Node]
) -> tuple[fx.Node, tuple[fx.Node, ...], tuple[fx.Node, ...]] | None:
    """The product of which a leaf is one half, both halves, and what cuts it, the last first."""
    if leaf.target not in (operator.getitem, aten.slice.Tensor):
        return None
    cut: Any = leaf.args[0]
    split = cut.target in (aten.split.Tensor, aten.split_with_sizes.default)
    viewed: Any = cut.args[0] if split else cut
    if not _is_value(viewed):
        return None
    found = {_half(user, viewed.meta["val"]): user for user in cut.users}
    if len(cut.users) != 2 or set(found) != {0, 1}:
        return None
    read = (found[0], found[1])
    alone = all(half.users and set(steps).issuperset(half.users) for half in read)
    if not alone or not _is_product(_behind_view(viewed), viewed, [cut] if split else [*read]):
        return None
    return viewed, read, ((*read, cut) if split else read)


def _half(node: fx.Node, whole: torch.Tensor) -> int | None:
    """Which half of the last dim of a tensor a node is, 0 or 1."""
    columns = whole.shape[-1]
    if not isinstance(columns, int) or columns % 2:
        return None
    half, last = columns // 2, (-1, whole.dim() - 1)
    arguments: Any = node.args
    if node.target is operator.getitem:
        _, sizes, *dim = arguments[0].args
        cuts = sizes in (half, [half, half]) and (dim or [0])[0] in last
        return arguments[1] if cuts else None
    if node.target is aten.slice.Tensor and len(arguments) == 4 and arguments[1] in last:
        begin, end = arguments[2:]
        if isinstance(begin, int) and isinstance(end, int):
            return {(0, half): 0, (half, columns): 1}.get((begin, min(end, columns)))
    return None


def _cone(last: fx.Node, places: dict[fx.Node, int]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The steps that nothing but `last` needs, and what they read besides numbers."""
    inside, leaves = {last}, set()
    open_ = set(last.all_input_nodes)
    while open_:
        node = max(open_, key=places.__getitem__)
        open_.remove(node)
        if _number(node) is not None:
            continue
        if node.target in _STEPS and _of_shape(node, last) and inside.issuperset(node.users):
            inside.add(node)
            open_.update(node.all_input_nodes)
        else:
            leaves.add(node)
    return sorted(inside, key=places.__getitem__), list(leaves)


def _is_product(product: fx.Node, viewed: fx.Node, steps: list[fx.Node]) -> bool:
    """Whether a leaf is a product that only these steps read."""
    if product.target not in _PRODUCTS or not set(steps).issuperset(viewed.users):
        return False
    value = product.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES or value.device.type not in _DEVICES:
        return False
    return product is viewed or set(product.users) == {viewed}


def _behind_view(node: fx.Node) -> fx.Node:
    """The matrix of which a node gives the rows other dims, or the node."""
    source: Any = node.args[0] if node.target in (aten.view.default, aten.reshape.default) else node
    if source is node or not _is_value(source) or not _is_value(node):
        return node
    value, columns = source.meta["val"], node.meta["val"].shape[-1:]
    # The last dim stays, so an element of another tensor is found at the same place.
    known = value.dim() == 2 and isinstance(value.shape[1], int)
    return source if known and list(columns) == [value.shape[1]] else node


def _is_value(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _of_shape(node: fx.Node, like: fx.Node) -> bool:
    return _is_value(node) and str(node.meta["val"].shape) == str(like.meta["val"].shape)


def _alike(node: fx.Node, like: fx.Node) -> bool:
    same = _of_shape(node, like) and node.meta["val"].dtype == like.meta["val"].dtype
    return same and node.meta["val"].device == like.meta["val"].device


def _in_rows(node: fx.Node) -> bool:
    """Whether elements lie in memory as those of a result do: others would be copied first."""
    value = node.meta["val"]
    return str(value.stride()) == str(value.new_empty(value.shape).stride())


def _reads_memory(users: Iterable[fx.Node]) -> bool:
    """Whether there are users, and all read from memory: the caller, ops of ours, views for these."""
    return any(True for _ in users) and all(
        _reads_memory(user.users) if is_view(user) else user.op == "output" or is_ours(user) for user in users
    )


def _number(value: Any) -> float | None:
    """The value of a number, given as one or as a tensor without dims."""
    if isinstance(value, fx.Node):
        if value.target is aten.scalar_tensor.default:
            return _number(value.args[0])
        if value.target is aten.full.default and value.args[0] == []:
            return _number(value.args[1])
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _program(join: _Join) -> str | None:
    """The steps spelled out, or None where one is not what its name says."""
    names: dict[fx.Node, str] = dict(zip(join.read, "pq", strict=False))
    if join.other is not None:
        names[join.other] = "o"
    steps: list[Step] = []
    for node in join.steps:
        step = _step(node, names)
        if step is None:
            return None
        steps.append(step)
        names[node] = f"t{len(steps)}"
    program = epilogue.spell(steps)
    try:
        found = epilogue.dtypes(program, join.viewed.meta["val"].dtype)
    except ValueError:
        return None
    # What a step gives here must be what it gives in the graph.
    same = all(found[names[node]] == node.meta["val"].dtype for node in join.steps)
    return program if same and found[f"t{len(steps)}"] in _DTYPES else None


def _step(node: fx.Node, names: dict[fx.Node, str]) -> Step | None:
    own, name = node.args, _STEPS[node.target]
    if not name:
        own, name = node.args[:1], str(node.args[1]).removeprefix("torch.")
    if node.kwargs or epilogue.STEPS.get(name) != len(own):
        return None
    known = [names.get(a) if isinstance(a, fx.Node) else None for a in own]
    dtypes = {a.meta["val"].dtype for a in node.all_input_nodes[name == "where" :] if a in names}
    if len(dtypes) != 1:
        return None
    arguments: list[str | float] = []
    for argument, value in zip(own, known, strict=True):
        number = _number(argument) if value is None else None
        if value is not None:
            arguments.append(value)
        elif number is not None and _exact(number, *dtypes):
            arguments.append(number)
        else:
            return None
    return Step(name, tuple(arguments))


def _exact(number: float, dtype: torch.dtype) -> bool:
    """Whether an op on tensors of a dtype takes a number as it is: of fp32, whatever is near a normal one."""
    if not math.isfinite(number):
        return False
    rounded = torch.tensor(number, dtype=dtype).item()
    normal = rounded == 0 or torch.finfo(dtype).tiny <= abs(rounded) < math.inf
    return normal and (dtype == torch.float32 or rounded == number)


def _replace(graph: fx.Graph, join: _Join, last: fx.Node, places: dict[fx.Node, int]) -> None:
    product, viewed, other = join.product, join.viewed, join.other
    value: torch.Tensor = product.meta["val"]
    columns = last.meta["val"].shape[-1]

    def call(target: Any, arguments: tuple[Any, ...], dtype: torch.dtype, **options: Any) -> fx.Node:
        node = graph.call_function(target, arguments, options)
        node.meta = {**last.meta, "val": value.new_empty((*value.shape[:-1], columns), dtype=dtype)}
        places[node] = places[last]
        return node

    with graph.inserting_before(last):
        if other is not None and viewed is not product:
            other = call(aten.reshape.default, (other, [-1, columns]), value.dtype)
        if product.target in _WITH_EPILOGUE:
            target, arguments = _WITH_EPILOGUE[product.target], product.args
        else:
            *added, a, b = product.args
            target, arguments = bi.product_epilogue.default, (a, b, added[0] if added else None)
        result = last.meta["val"].dtype
        joined = call(target, (*arguments, other, _program(join)), result, **product.kwargs)
        if viewed is not product:
            sizes: Any = viewed.args[1]
            joined = call(viewed.target, (joined, [*sizes[:-1], columns]), result)
            joined.meta = dict(last.meta)
    last.replace_all_uses_with(joined)
    for node in [*reversed(join.steps), *join.cut, *{viewed: None, product: None}]:
        graph.erase_node(node)
        del places[node]
