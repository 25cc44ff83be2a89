"""The order in which a compiled kernel sums: what two configurations must share before they may serve one op.

`certificate(compiled)` follows each stored value back through the kernel's TTGIR, the form in which layouts,
software pipelining and the tensor core instruction are decided, and writes down the expression it is. Tiles,
warps, stages, swizzles and the way operands come into registers leave no trace; what changes a sum does:

    bf16(chain16[K](0; a*b))                         one chain over K of fused sums of 16 products, from 0
    bf16(sum[4096 of K](0; chain16[4096](0; a*b)))   chains of 4096, added in order
    sum[32 of K](0; dot8[32](a*b; 0))                blocks of 32, each summed on its own
    quiet(bf16(fma(x, w, 0)))                        every NaN the one quiet one

A certificate is about order. That an instruction of one kind and K sums alike for every shape, `mma.sync` or
`wgmma`, is measured (docs/gpu-order.md).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bi_compile.templates.gpu.ttgir import Function, Loop, Operation, parse

_SAME_VALUE = {
    "ttg.convert_layout", "ttg.local_load", "ttg.memdesc_index", "ttg.memdesc_trans", "ttg.memdesc_subslice",
    "ttg.memdesc_reinterpret", "tt.trans", "tt.expand_dims", "tt.broadcast", "tt.splat", "tt.reshape",
    "tt.split", "ttng.warp_group_dot_wait", "tt.addptr",
}  # fmt: skip
_WRITES = {"ttg.async_copy_global_to_local", "ttng.async_tma_copy_global_to_local", "ttg.local_store"}
_COMMUTE = {"add", "mul"}


class Certificate(NamedTuple):
    """Equal certificates: equal bits from equal inputs, given equal instructions."""

    stores: tuple[str, ...]
    """The distinct expressions that the kernel stores."""
    instructions: tuple[str, ...]
    """What the tensor core multiplies, and how many products one instruction sums."""
    contracted: bool
    """Whether products and sums of the source were fused into multiply-adds."""

    def __str__(self) -> str:
        fused = "; with products fused into sums" if self.contracted else ""
        return f"{'; '.join(self.stores)} by {', '.join(self.instructions) or 'scalar instructions'}{fused}"


def certificate(compiled: Any, *, same: Mapping[str, str] | None = None) -> Certificate:
    """The certificate of a compiled Triton kernel. Raises ValueError for what it cannot follow.

    same: arguments that are other views of an argument's memory, such as descriptors with other blocks; or
        what a kernel before this one stored in their memory, as an expression.
    """
    function = parse(compiled.asm["ttgir"])
    if any(operation.name.startswith("ttng.tmem") for operation in function.operations):
        raise ValueError("sums in Blackwell's tensor memory are not followed")
    writer = _Expressions(function, same or {})
    stores = {writer.of(store.operands[1]) for store in function.operations if store.name == "tt.store"}
    if not stores:
        raise ValueError("the kernel stores nothing that can be followed")
    ptx = compiled.asm["ptx"]
    return Certificate(tuple(sorted(stores)), instructions(ptx), _contracted(compiled, ptx))


def composed(partial: Certificate, adding: Certificate, chunks: str = "chunks") -> Certificate:
    """The certificate of two kernels: the second adds the `chunks` chains that the first stored.

    chunks: the argument that counts them; they are read through the argument `chains`.
    """
    (stored,) = partial.stores
    size = re.search(r"(?:of |\[)(\d+)\]", stored)
    if size is None:
        raise ValueError(f"{stored} is no part of a sum")
    read = f"sum[1 of {chunks}](0; chains)"
    stores = tuple(store.replace(read, f"sum[{size[1]} of K](0; {stored})") for store in adding.stores)
    return Certificate(
        tuple(sorted(stores)),
        tuple(sorted({*partial.instructions, *adding.instructions})),
        partial.contracted or adding.contracted,
    )


class _Expressions:
    def __init__(self, function: Function, same: Mapping[str, str]) -> None:
        self.function = function
        self.same = same
        self.open: list[tuple[Loop, int]] = []
        """Sums being followed, outermost first: the loop and which of its values."""

    def of(self, value: str) -> str:
        source = self.function.source(value)
        if isinstance(source, str):
            return source
        if isinstance(source, tuple):
            loop, i, inside = source
            return self._carried(loop, i) if inside else self._loop(loop, i)
        return self._operation(source, value)

    def _carried(self, loop: Loop, i: int) -> str:
        for depth, (open_loop, j) in enumerate(self.open):
            if open_loop is loop and i == j:
                return f"carry{depth}"
        # No sum: something read one step ahead, the same before the loop and in it.
        return self._loop(loop, i)

    def _loop(self, loop: Loop, i: int) -> str:
        start = self.of(loop.initial[i])
        depth = len(self.open)
        self.open.append((loop, i))
        step = self.function.skip(loop.yielded[i])
        carry = f"carry{depth}"
        try:
            dot = self._as_dot(step)
            if dot is not None and self.of(dot.operands[2]) == carry:
                return f"chain{kind_of(dot)}[{self._extent(loop)}]({start}; {self._product(dot)})"
            body = self.of(step)
        finally:
            self.open.pop()
        if carry not in body:
            if body != start:
                raise ValueError(f"a loop yields {body} after {start}, which is no sum")
            return body
        walk = f"[{self.function.index(loop.step)} of {self._extent(loop)}]"
        added = f"add({carry}, "
        if body.startswith(added) and carry not in body[len(added) :]:
            return f"sum{walk}({start}; {body[len(added) : -1]})"
        return f"loop{walk}({start}; {body})"

    def _operation(self, operation: Operation, value: str) -> str:
        name = operation.name
        if name in _SAME_VALUE:
            return self.of(operation.operand_of(value))
        if name == "ttg.local_alloc":
            return self.of(operation.operands[0]) if operation.operands else self._written(value)
        if name in ("tt.load", "tt.descriptor_load"):
            return self._memory(operation.operands[0])
        if name == "arith.constant":
            number = re.search(r"constant (?:dense<)?([^>\s]+)", operation.text)
            assert number
            return number[1].replace(".000000e+00", "")
        if (dot := self._as_dot(value)) is not None:
            size = re.search(r"<(?:\d+x)*?(\d+)x[a-z]", operation.types[0])
            assert size
            return f"dot{kind_of(dot)}[{size[1]}]({self._product(dot)}; {self.of(dot.operands[2])})"
        if name == "tt.reduce":
            return f"reduce[{self._reduction(operation)}]({self.of(operation.operands[0])})"
        parts = [self.of(operand) for operand in operation.operands]
        short = _short(operation)
        if short == "select" and parts[0] == f"uno({parts[2]}, {parts[2]})":
            return f"{parts[1]} if NaN({parts[2]})"
        if short == "select" and _makes_one_nan(*parts):
            return f"quiet({parts[2]})"
        if short in _COMMUTE:
            # A running sum first: which side it stands on in the source is no order.
            parts.sort(key=lambda part: (not part.startswith("carry"), part))
        return f"{short}({', '.join(parts)})"

    def _memory(self, address: str) -> str:
        """The argument whose memory is read, wherever in it."""
        source = self.function.source(address)
        if isinstance(source, str):
            return self.same.get(source, source)
        if isinstance(source, tuple):
            loop, i, _ = source
            return self._memory(loop.initial[i])
        if source.name not in _SAME_VALUE:
            raise ValueError(f"an address made by {source.name}")
        return self._memory(source.operands[0])

    def _as_dot(self, value: str) -> Operation | None:
        source = self.function.source(self.function.skip(value))
        is_dot = isinstance(source, Operation) and source.name in ("tt.dot", "ttng.warp_group_dot")
        return source if is_dot else None

    def _product(self, dot: Operation) -> str:
        return "*".join(sorted(self.of(operand) for operand in dot.operands[:2]))

    def _reduction(self, operation: Operation) -> str:
        """Two elements have one order; that of more follows from the threads and warps along the axis."""
        axis = re.search(r"axis = (\d+)", operation.text)
        shape = re.search(r"<((?:\d+x)+)[a-z]\w*(?:, (#\w+))?", operation.types[0])
        assert axis
        assert shape
        inner = "+".join(sorted({_short(o) for o in operation.body if "return" not in o.name}))
        dims = shape[1].rstrip("x").split("x")[int(axis[1]) :]
        if int(dims[0]) <= 2:
            return f"{inner} of {'x'.join(dims)}"
        return f"{inner} of {'x'.join(dims)} in {self.function.layouts.get(shape[2], 'no layout')}"

    def _written(self, buffer: str) -> str:
        """What a buffer in shared memory holds: all that is copied into it must be one thing."""
        found = set()
        for operation in self.function.operations:
            if operation.name in _WRITES:
                target = next((o for o in operation.operands if self.function.root_buffer(o) == buffer), None)
                if target is not None:
                    source = operation.operands[0]
                    stored = operation.name == "ttg.local_store"
                    found.add(self.of(source) if stored else self._memory(source))
        if len(found) != 1:
            raise ValueError(f"{buffer} is written from {sorted(found)}")
        return found.pop()

    def _extent(self, loop: Loop) -> str:
        """What a loop walks: "K" or "its K", for one that is worked out, or the length of a piece of it."""
        low, high = self.function.index(loop.low), self.function.index(loop.high)
        if low == "0":
            return high if high.isidentifier() else "its K"
        around = [self.function.index(open_loop.high) for open_loop, _ in self.open]
        for length in re.findall(r"\d+", high):
            for whole in ("K", *around):
                if high in (f"min({whole}, ({low} + {length}))", f"min(({low} + {length}), {whole})"):
                    return length
        raise ValueError(f"a loop from {low} to {high}, which is no piece of K")


def _makes_one_nan(condition: str, nan: str, value: str) -> bool:
    """Whether a value is stored as it is, but for NaN, of which there is one then."""
    inner = value.partition("(")[2].removesuffix(")") if value.startswith(("bf16(", "f16(")) else value
    return nan.startswith("bitcast(") and condition == f"une({inner}, {inner})"


def kind_of(dot: Operation) -> str:
    """How many products one instruction sums, and whether it takes them out of order."""
    a, b = (re.search(r"x(bf16|f16|f32|f64|f8\w+)", kind) for kind in dot.types[:2])
    if a is None or b is None:
        raise ValueError(f"a product of {dot.types[0]} and {dot.types[1]}")
    if dot.name == "tt.dot" and "mma" not in dot.types[-1]:
        return "1"
    bits = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64}.get(a[1], 8)
    permuted = ""
    for kind in dot.types[:2]:
        width = re.search(r"kWidth = (\d+)", kind)
        if width and int(width[1]) * bits != 32:
            permuted = f" in order {width[1]}"
    imprecise = re.search(r"maxNumImpreciseAcc = (\d+)", dot.text)
    return f"{256 // bits}{permuted}" + (f" imprecise {imprecise[1]}" if bits == 8 and imprecise else "")


def _short(operation: Operation) -> str:
    if operation.name == "tt.elementwise_inline_asm":
        told = re.search(r'"([^"]*)"', operation.text)
        return told[1].split(" ")[0].removeprefix("cvt.rna.").removesuffix(".f32") if told else operation.name
    if operation.name == "tt.extern_elementwise":
        symbol = re.search(r'symbol = "(\w+)"', operation.text)
        return symbol[1] if symbol else operation.name
    if operation.name in ("arith.truncf", "arith.extf"):
        kind = re.search(r"(?:x|^)(bf16|f16|f32|f64|f8\w+)", operation.types[-1])
        return kind[1] if kind else operation.name
    if operation.name == "arith.cmpf":
        return operation.text.split("cmpf ")[1].split(",")[0]
    name = operation.name.rsplit(".", 1)[-1]
    return name.removesuffix("f") if operation.name.startswith("arith.") else name


def instructions(ptx: str) -> tuple[str, ...]:
    """What the tensor core multiplies, and how many products one instruction sums."""
    found = set()
    for k, kinds in re.findall(r"mma(?:_async)?\.sync\.aligned\S*?m\d+n\d+k(\d+)\S*?\.f32\.(\S+)", ptx):
        found.add(f"{kinds.split('.')[0]} k{k}")
    return tuple(sorted(found))


def _contracted(compiled: Any, ptx: str) -> bool:
    ttgir = compiled.asm["ttgir"]
    if "tt.extern_elementwise" in ttgir:  # libdevice's functions are made of multiply-adds
        return compiled.metadata.enable_fp_fusion
    written = re.search(r"(?:math\.fma|\bfma\b)", ttgir) is not None
    return not written and bool(re.search(r"\bfma\.rn\.f(?:32|64)", ptx))
