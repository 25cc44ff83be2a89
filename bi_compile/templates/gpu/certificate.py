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

from bi_compile.templates.gpu import kept, tensor_memory
from bi_compile.templates.gpu.instructions import instructions, kind_of
from bi_compile.templates.gpu.ttgir import SAME_VALUE, Block, Function, Loop, Operation, number_of, parse

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
    tensor_memory.check(function)
    writer = _Expressions(function, same or {})
    stores = {
        writer.of(operation.operands[1])
        for operation in function.operations
        if operation.name == "tt.store" and operation.operands[0] not in writer.kept.values()
    }
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
        self.kept = kept.addresses(function)
        self.open: list[tuple[Loop, int | str]] = []
        """Sums being followed, outermost first: the loop, and its value, a buffer or addresses."""

    def of(self, value: str) -> str:
        source = self.function.source(value)
        if isinstance(source, str):
            return source
        if isinstance(source, tuple):
            loop, i, _ = source
            # If it is no sum, then something read one step ahead, the same before the loop and in it.
            return self._carry(loop, i) or self._loop(loop, i)
        return self._operation(source, value)

    def _carry(self, loop: Loop, key: int | str) -> str | None:
        """The name of a sum that is being followed."""
        return next((f"carry{i}" for i, followed in enumerate(self.open) if followed == (loop, key)), None)

    def _loop(self, loop: Loop, key: int | str, last: tuple[str, str] | None = None) -> str:
        """What a loop makes of a value, of a buffer in tensor memory, or of what is kept in device memory.

        last: where a branch behind it does the last step: what that makes, and the end of the walk with it.
        """
        start, first, end = self._start(loop, key)
        end = last[1] if last else end
        carry = f"carry{len(self.open)}"
        self.open.append((loop, key))
        try:
            body, dot = self._step(loop, key)
            apart = self._dot(first, carry) if first else self.of(last[0]) if last else body
            if apart != body:
                raise ValueError(f"a loop does {body}, and one step outside of it {apart}")
            if dot is not None and self._addend(dot) == carry:
                return f"chain{kind_of(dot)}[{self._extent(loop, end)}]({start}; {self._product(dot)})"
        finally:
            self.open.pop()
        if carry not in body:
            if body != start:
                raise ValueError(f"a loop yields {body} after {start}, which is no sum")
            return body
        walk = f"[{self.function.index(loop.step)} of {self._extent(loop, end)}]"
        added = f"add({carry}, "
        if body.startswith(added) and carry not in body[len(added) :]:
            return f"sum{walk}({start}; {body[len(added) : -1]})"
        return f"loop{walk}({start}; {body})"

    def _start(self, loop: Loop, key: int | str) -> tuple[str, Operation | None, str]:
        """What a loop begins with, a product before it that does its first step, and the end of the walk."""
        if isinstance(key, int):
            return self.of(loop.initial[key]), None, loop.high
        writer = tensor_memory.last_write(self.function, key, loop.block, loop)
        product = tensor_memory.product_of(writer)
        end = product and self.function.leaves_a_step(loop, product.condition)
        if not product or not end or not isinstance(writer, Operation) or writer.block is not loop.block:
            return self._held(key, loop.block, loop), None, loop.high
        start = self._held(key, loop.block, writer)
        if self.function.constant(product.adds) != "true" and (self._addend(writer), start) != ("0", "0"):
            raise ValueError(f"{start} stays where there is no first step")
        return start, writer, end

    def _step(self, loop: Loop, key: int | str) -> tuple[str, Operation | None]:
        """What one step makes, and the product that makes it, if one does."""
        if isinstance(key, int):
            value = self.function.skip(loop.yielded[key])
            return self.of(value), self._as_dot(value)
        body = loop.blocks[0]
        writer = tensor_memory.last_write(self.function, key, body, None)
        dot = writer if isinstance(writer, Operation) and tensor_memory.product_of(writer) else None
        return self._held(key, body, None), dot

    def _branch(self, branch: Operation, i: int) -> str:
        """What a branch yields: the last step of a loop, or else what the loop does; or one thing anyway."""
        done, left = (self.function.skip(block.yielded[i]) for block in branch.blocks)
        source = self.function.source(left)
        if isinstance(source, tuple) and not source[2]:
            loop, j, _ = source
            end = self.function.leaves_a_step(loop, branch.operands[0])
            if end is not None:
                return self._loop(loop, j, (done, end))
        if self.of(done) != self.of(left):
            raise ValueError(f"a branch yields {self.of(done)} or {self.of(left)}")
        return self.of(done)

    def _held(self, buffer: str, block: Block, before: Operation | Loop | None) -> str:
        """What a buffer in tensor memory, or kept memory, holds before an item of a block, or at its end."""
        writer = tensor_memory.last_write(self.function, buffer, block, before)
        if isinstance(writer, Loop):
            return self._loop(writer, buffer)
        if isinstance(writer, Block):
            assert isinstance(writer.owner, Loop)
            carry = self._carry(writer.owner, buffer)
            if carry is None:
                raise ValueError(f"{buffer} holds what a step before has left")
            return carry
        if product := tensor_memory.product_of(writer):
            if self.function.constant(product.condition) != "true":
                raise ValueError(f"a product into {buffer} is done in some cases")
            return self._dot(writer, self._addend(writer))
        if not writer.operands:
            raise ValueError(f"{buffer} is read before anything is written")
        return self.of(writer.operands[1 if writer.name == "tt.store" else 0])

    def _operation(self, operation: Operation, value: str) -> str:
        name = operation.name
        if name in SAME_VALUE:
            return self.of(operation.operand_of(value))
        if name == "scf.if":
            return self._branch(operation, number_of(value))
        if operation.blocks and name != "tt.reduce":
            raise ValueError(f"a value made by {name}")
        if name == "ttng.tmem_load":
            return self._held_by(operation, operation.operands[0])
        if name == "ttg.local_alloc":
            return self.of(operation.operands[0]) if operation.operands else self._written(value)
        if name == "tt.load" and operation.operands[0] in self.kept.values():
            return self._held(operation.operands[0], operation.block, operation)
        if name in ("tt.load", "tt.descriptor_load"):
            return self._memory(operation.operands[0])
        if name == "arith.constant":
            number = re.search(r"constant (?:dense<)?([^>\s]+)", operation.text)
            assert number
            return number[1].replace(".000000e+00", "")
        if (dot := self._as_dot(value)) is not None:
            return self._dot(dot, self._addend(dot))
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
        argument = self.function.argument(address)
        if argument in self.kept:
            raise ValueError(f"{argument} is kept for others to read")
        return self.same.get(argument, argument)

    def _as_dot(self, value: str) -> Operation | None:
        source = self.function.source(self.function.skip(value))
        is_dot = isinstance(source, Operation) and source.name in ("tt.dot", "ttng.warp_group_dot")
        return source if is_dot else None

    def _dot(self, dot: Operation, addend: str) -> str:
        size = re.search(r"<(?:\d+x)*?(\d+)x[a-z]", dot.types[0])
        assert size
        return f"dot{kind_of(dot)}[{size[1]}]({self._product(dot)}; {addend})"

    def _addend(self, dot: Operation) -> str:
        """What products are added to."""
        product = tensor_memory.product_of(dot)
        if product is None:
            return self.of(dot.operands[2])
        adds = self.function.constant(product.adds)
        if adds not in ("true", "false"):
            raise ValueError(f"products are added to {product.buffer} in some cases")
        return self._held_by(dot, product.buffer) if adds == "true" else "0"

    def _product(self, dot: Operation) -> str:
        return "*".join(sorted(self._held_by(dot, operand) for operand in dot.operands[:2]))

    def _held_by(self, operation: Operation, operand: str) -> str:
        """What an operation reads: a value, or what is in tensor memory then."""
        buffer = tensor_memory.buffer_of(self.function, operand)
        return self._held(buffer, operation.block, operation) if buffer else self.of(operand)

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

    def _extent(self, loop: Loop, end: str) -> str:
        """What is walked, up to the value `end`: "K" or "its K", if worked out, or the length of a piece."""
        low, high = self.function.index(loop.low), self.function.index(end)
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


def _contracted(compiled: Any, ptx: str) -> bool:
    ttgir = compiled.asm["ttgir"]
    if "tt.extern_elementwise" in ttgir:  # libdevice's functions are made of multiply-adds
        return compiled.metadata.enable_fp_fusion
    written = re.search(r"(?:math\.fma|\bfma\b)", ttgir) is not None
    return not written and bool(re.search(r"\bfma\.rn\.f(?:32|64)", ptx))
