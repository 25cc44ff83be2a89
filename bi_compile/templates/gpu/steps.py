"""What a compiled kernel leaves open about the order of its sums: for kernels too long to write down.

In TTGIR a sum of two tensors is one operation with two operands, and no pass after it may regroup them. Many
numbers become one in four ways only: a product of blocks, whose instructions sum along K; a reduction along
an axis, whose order follows from the threads and warps along it, but for two elements and for the largest of
many; a scan, likewise; and atomics, whose order is that of arrival. `steps(compiled)` lists these, without
what changes no sum, such as running maxima, or comes to nothing but integers that are stored, such as
attention's flags of tiles that are to be done again:

    sums of 2                                    each is a sum of two in the source
    products chain16[128], chain16[64]; sums of 2      blocks of 128 and of 64 along K, 16 at a time

Two kernels of one source and equal lists sum alike, if the tiles of their source do: that is what the
comparisons with the oracle in the interpreter show.
"""

import re
from typing import Any, NamedTuple

from bi_compile.templates.gpu.instructions import instructions, kind_of
from bi_compile.templates.gpu.ttgir import Function, Operation, parse

_ONE_IN_ANY_ORDER = {
    "arith.maxsi", "arith.minsi", "arith.maxui", "arith.minui", "arith.maxnumf", "arith.minnumf",
    "arith.maximumf", "arith.minimumf", "arith.ori", "arith.andi", "arith.addi",
}  # fmt: skip
_PRODUCTS = ("tt.dot", "ttng.warp_group_dot")


class Steps(NamedTuple):
    """Where a compiled kernel makes one number of many, in one operation."""

    products: tuple[str, ...]
    """Blocks of products: how many an instruction sums, and the length of a block along K."""
    instructions: tuple[str, ...]
    """As in a `Certificate`."""
    unordered: tuple[str, ...]
    """What follows the layout or the order of arrival: with any of these there is no certificate."""
    contracted: bool
    """Whether the compiler may fuse products and sums of the source into multiply-adds."""

    def __str__(self) -> str:
        told = [f"products {', '.join(self.products)}"] if self.products else []
        told += (
            [f"in no order of their own: {', '.join(self.unordered)}"] if self.unordered else ["sums of 2"]
        )
        told += ["products may be fused into sums"] if self.contracted else []
        return f"{'; '.join(told)} by {', '.join(self.instructions) or 'scalar instructions'}"


def steps(compiled: Any) -> Steps:
    """The steps of a compiled Triton kernel. Raises ValueError for what cannot be followed."""
    function = parse(compiled.asm["ttgir"])
    if any(operation.name.startswith(("ttng.tmem", "ttng.tc_gen5")) for operation in function.operations):
        raise ValueError("sums in Blackwell's tensor memory are not followed")
    products, unordered = set(), set()
    for operation in function.operations:
        if operation.name in _PRODUCTS:
            products.add(_product(operation))
        elif operation.name == "tt.reduce":
            unordered.add(_reduction(function, operation))
        elif operation.name == "tt.scan":
            unordered.add("" if _inner(operation) <= _ONE_IN_ANY_ORDER else "scan")
        elif "atomic" in operation.name or operation.name == "tt.histogram":
            unordered.add(operation.name.removeprefix("tt."))
    return Steps(
        tuple(sorted(products)),
        instructions(compiled.asm["ptx"]),
        tuple(sorted(unordered - {""})),
        compiled.metadata.enable_fp_fusion,
    )


def certified(compiled: Any) -> Steps:
    """The steps of a kernel that leaves nothing open. Raises ValueError for one that does."""
    found = steps(compiled)
    if found.unordered or found.contracted:
        raise ValueError(str(found))
    return found


def _product(dot: Operation) -> str:
    size = re.search(r"<(?:\d+x)*?(\d+)x[a-z]", dot.types[0])
    assert size
    return f"chain{kind_of(dot)}[{size[1]}]"


def _reduction(function: Function, reduce: Operation) -> str:
    """A reduction whose order is open, or ""."""
    axis = re.search(r"axis = (\d+)", reduce.text)
    shape = re.search(r"<((?:\d+x)+)[a-z]\w*(?:, (#\w+))?", reduce.types[0])
    assert axis
    assert shape
    length = int(shape[1].split("x")[int(axis[1])])
    inner = _inner(reduce)
    if length <= 2 or inner <= _ONE_IN_ANY_ORDER or _is_flag(function, reduce):
        return ""
    what = "+".join(sorted(name.rsplit(".", 1)[-1] for name in inner))
    return f"{what} of {length} in {function.layouts.get(shape[2], 'no layout')}"


def _inner(operation: Operation) -> set[str]:
    """What a reduction or a scan does to two."""
    return {of_two.name for of_two in operation.body if "return" not in of_two.name}


def _is_flag(function: Function, operation: Operation) -> bool:
    """Whether all that becomes of a result is integers in memory."""
    reached = [operation]
    for source in reached:
        for user in function.operations:
            if any(base in source.results for base in (o.partition("#")[0] for o in user.operands)):
                if user.name == "tt.store":
                    if not re.search(r"!tt\.ptr<i\d+>", user.text):
                        return False
                elif user.name.startswith("scf.") or not user.results:
                    return False
                elif user not in reached:
                    reached.append(user)
    return True
