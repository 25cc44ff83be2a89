"""Blackwell's tensor memory in TTGIR: where what a buffer holds comes from.

Sums of `ttng.tc_gen5_mma` stand in buffers and in no value that could be followed. The operations on one
take effect in the order in which they are written (whoever reads a sum has waited for it), so a buffer holds
what was written to it last. What is none of the few operations below, or writes a part, is a ValueError.
"""

from typing import NamedTuple

from bi_compile.templates.gpu.ttgir import Block, Function, Loop, Operation

_OPERANDS = {
    "ttng.tmem_alloc": (0, 1),
    "ttng.tmem_load": (1,),
    "ttng.tmem_subslice": (1,),
    "ttng.tmem_store": (3,),
}
"""Of each operation how many it has; more of them order it otherwise than the text does."""
_BUFFERS = {"ttng.tmem_load": 0, "ttng.tmem_subslice": 0, "ttng.tmem_store": 1, "ttng.tc_gen5_mma": 2}
"""Which of them is the buffer."""
_PRODUCT = "ttng.tc_gen5_mma"
_NO_EFFECT = {"ttng.wait_barrier"}


class Product(NamedTuple):
    """a x b, added to the buffer or, without `adds`, instead of what it holds; where `condition` is true."""

    a: str
    b: str
    buffer: str
    adds: str
    condition: str


def product_of(item: Operation | Loop | Block) -> Product | None:
    """A product whose sums are in tensor memory, or None."""
    if isinstance(item, Operation) and item.name == _PRODUCT:
        return Product(*item.operands[:5])
    return None


def check(function: Function) -> None:
    """Raise ValueError where a buffer is used in a way that is not followed."""
    for loop in function.inductions.values():
        if any(buffer_of(function, value) for value in (*loop.initial, *loop.yielded)):
            raise ValueError("a loop carries a buffer of tensor memory")
    for operation in function.operations:
        name, made = operation.name, len(operation.results)
        if name in _OPERANDS:
            known = len(operation.operands) in _OPERANDS[name] and made == (name != "ttng.tmem_store")
        elif name == _PRODUCT:
            known = made == 0
        else:
            used = any(buffer_of(function, operand) for operand in operation.operands)
            known = name in _NO_EFFECT or not (used or name.startswith(("ttng.tmem", "ttng.tc_gen5_mma")))
        if name in _BUFFERS and known:
            known = buffer_of(function, operation.operands[_BUFFERS[name]]) is not None
        if not known:
            raise ValueError(f"{name} of tensor memory")


def buffer_of(function: Function, value: str) -> str | None:
    """The buffer that a value is, or is columns of; None for what is not in tensor memory."""
    while (operation := function.made.get(value.partition("#")[0])) is not None:
        if operation.name == "ttng.tmem_alloc":
            return value
        if operation.name != "ttng.tmem_subslice":
            return None
        value = operation.operands[0]
    return None


def last_write(
    function: Function, buffer: str, block: Block, before: Operation | Loop | None
) -> Operation | Loop | Block:
    """What wrote a buffer last before an item of a block; before None: at its end.

    The buffer may be addresses of device memory, see `kept`.

    A loop wrote it in its body; a block is the body of the loop around, in which nothing wrote it before.
    """
    items = block.items if before is None else block.items[: block.items.index(before)]
    for item in reversed(items):
        inside = any(_written(function, operation) == buffer for operation in _within(item))
        if inside and isinstance(item, Operation):
            raise ValueError(f"{buffer} is written in {item.name}")
        if inside or (isinstance(item, Operation) and _written(function, item) == buffer):
            return item
    owner = block.owner
    if isinstance(owner, Loop):
        return block
    if owner is None or owner.name != "scf.if":
        raise ValueError(f"{buffer} is read and never written")
    return last_write(function, buffer, owner.block, owner)


def _written(function: Function, operation: Operation) -> str | None:
    """The buffer that an operation writes, whole, or the addresses to which it stores."""
    if operation.name == "ttng.tmem_alloc":
        return operation.results[0]
    if operation.name == "tt.store":
        return operation.operands[0]
    if operation.name not in ("ttng.tmem_store", _PRODUCT):
        return None
    product = product_of(operation)
    written = operation.operands[_BUFFERS[operation.name]]
    buffer = buffer_of(function, written)
    if buffer != written:
        raise ValueError(f"a part of {buffer} is written")
    if product is None and function.constant(operation.operands[2]) != "true":
        raise ValueError(f"{buffer} is written in some cases")
    return buffer


def _within(item: Operation | Loop) -> list[Operation]:
    found = []
    for block in item.blocks:
        for inside in block.items:
            found += [inside] if isinstance(inside, Operation) else []
            found += _within(inside)
    return found
