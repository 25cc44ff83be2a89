"""Just enough of a reader of TTGIR, Triton's form after layouts are chosen, to follow values in a kernel."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_NAME = r"%[\w.$-]+(?:#\d+)?"
SAME_VALUE = {
    "ttg.convert_layout", "ttg.local_load", "ttg.memdesc_index", "ttg.memdesc_trans", "ttg.memdesc_subslice",
    "ttg.memdesc_reinterpret", "tt.trans", "tt.expand_dims", "tt.broadcast", "tt.splat", "tt.reshape",
    "tt.split", "ttng.warp_group_dot_wait", "tt.addptr",
}  # fmt: skip
"""Operations that pass their first operand on, or that of a result's number: elsewhere, in another layout."""


@dataclass(eq=False)
class Block:
    """What runs in order, each once: the body of a kernel, of a loop, or of one side of a branch."""

    owner: "Operation | Loop | None"
    items: "list[Operation | Loop]" = field(default_factory=list)
    yielded: tuple[str, ...] = ()


@dataclass(eq=False)
class Operation:
    """One operation: its operands by name, its line, and the blocks inside it."""

    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    types: tuple[str, ...]
    text: str
    block: Block
    blocks: list[Block] = field(default_factory=list)

    @property
    def body(self) -> "list[Operation]":
        """The operations directly inside it."""
        return [item for block in self.blocks for item in block.items if isinstance(item, Operation)]

    def operand_of(self, value: str) -> str:
        """The operand that the result `value` passes on: the one of the same number."""
        return self.operands[number_of(value)]


@dataclass(frozen=True, eq=False)
class Loop:
    """An scf.for: induction variable, bounds and the values it carries."""

    induction: str
    low: str
    high: str
    step: str
    names: tuple[str, ...]
    initial: tuple[str, ...]
    block: Block
    blocks: list[Block] = field(default_factory=list)

    @property
    def yielded(self) -> tuple[str, ...]:
        return self.blocks[0].yielded


def number_of(value: str) -> int:
    """Which result of its operation a value is."""
    return int(value.partition("#")[2] or 0)


class Function:
    """The kernel: where every value comes from."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.layouts: dict[str, str] = {}
        self.arguments: set[str] = set()
        self.made: dict[str, Operation] = {}
        self.carried: dict[str, tuple[Loop, int]] = {}
        self.results: dict[str, Loop] = {}
        self.inductions: dict[str, Loop] = {}

    def source(self, value: str) -> "str | Operation | tuple[Loop, int, bool]":
        """Where a value comes from: an argument's name, the operation that makes it, or a loop, which of its
        values, and whether it is read inside the loop."""
        if value in self.carried:
            return (*self.carried[value], True)
        base = value.partition("#")[0]
        if base in self.results:
            return self.results[base], number_of(value), False
        if base in self.made:
            return self.made[base]
        if value in self.arguments:
            return value.lstrip("%")
        raise ValueError(f"{value} comes from nowhere")

    def argument(self, address: str) -> str:
        """The argument to whose memory an address points, wherever in it."""
        source = self.source(address)
        if isinstance(source, str):
            return source
        if isinstance(source, tuple):
            loop, i, _ = source
            return self.argument(loop.initial[i])
        if source.name not in SAME_VALUE:
            raise ValueError(f"an address made by {source.name}")
        return self.argument(source.operands[0])

    def constant(self, value: str) -> str | None:
        """A constant number or truth value as it is written, or None."""
        operation = self.made.get(value)
        found = operation and re.search(r"arith\.constant (-?\w+)", operation.text)
        return found[1] if found else None

    def leaves_a_step(self, loop: Loop, condition: str) -> str | None:
        """The end of a walk, if the loop ends one step before it and `condition` is that there is any step.

        One is done before the loop or after it then, where software pipelining has put it.
        """
        high, guard = self.made.get(loop.high), self.made.get(condition)
        if high is None or high.name != "arith.subi" or guard is None or guard.name != "arith.cmpi":
            return None
        end, less = high.operands
        ordered = {"sgt": guard.operands, "slt": guard.operands[::-1]}.get(guard.text.split("cmpi ")[1][:3])
        if ordered is None or not self._same(less, loop.step):
            return None
        return end if self._same(ordered[0], end) and self._same(ordered[1], loop.low) else None

    def _same(self, one: str, other: str) -> bool:
        return one == other or self.constant(one) == self.constant(other) is not None

    def skip(self, value: str) -> str:
        """The value before waits and changes of layout."""
        while True:
            operation = self.made.get(value.partition("#")[0])
            if operation is None or operation.name not in ("ttng.warp_group_dot_wait", "ttg.convert_layout"):
                return value
            value = operation.operand_of(value)

    def root_buffer(self, value: str) -> str | None:
        """The allocation in shared memory that a view belongs to, or None."""
        while (operation := self.made.get(value.partition("#")[0])) is not None:
            if operation.name == "ttg.local_alloc":
                return value
            if not operation.name.startswith("ttg.memdesc") or not operation.operands:
                return None
            value = operation.operands[0]
        return None

    def index(self, value: str) -> str:
        """An integer as an expression of arguments, p (a program's number) and i (a loop's variable)."""
        if value in self.inductions:
            return "i"
        if value in self.arguments:
            return value.lstrip("%")
        operation = self.made.get(value)
        if operation is None:
            return "?"
        if operation.name == "arith.constant":
            found = re.search(r"constant (-?\d+)", operation.text)
            return found[1] if found else "?"
        if operation.name == "tt.get_program_id":
            return "p"
        parts = [self.index(operand) for operand in operation.operands]
        signs = {
            "arith.addi": "+",
            "arith.muli": "*",
            "arith.subi": "-",
            "arith.divsi": "/",
            "arith.remsi": "%",
        }
        if operation.name in signs:
            return f"({f' {signs[operation.name]} '.join(parts)})"
        name = operation.name.rsplit(".", 1)[-1]
        return f"{'min' if name == 'minsi' else name}({', '.join(parts)})"


def parse(text: str) -> Function:
    """Read the one function of a module."""
    function = Function()
    blocks = [Block(None)]
    for line in _lines(text):
        if layout := re.match(r"(#\w+) = (#ttg\S*<.*>)", line):
            function.layouts[layout[1]] = layout[2]
            continue
        if "tt.func" in line:
            function.arguments.update(re.findall(rf"({_NAME}):", line))
            blocks.append(Block(None))
            continue
        owner = None
        if line.startswith("}"):
            closed = blocks.pop()
            # The other side of a branch, or what else the same operation has inside.
            owner = closed.owner
            if isinstance(owner, Operation) and owner.name == "tt.reduce":
                owner.types = _types(line)
        elif item := _loop(function, line, blocks[-1]) or _operation(line, blocks[-1]):
            _add(function, item)
            owner = item
        if line.endswith(("{", "({")):
            blocks.append(Block(owner))
            if owner is not None:
                owner.blocks.append(blocks[-1])
    return function


def _lines(text: str) -> Iterator[str]:
    """The lines, without where they come from, and with names that nothing else has.

    Blocks beside one another use the same names again.
    """
    scopes: list[dict[str, str]] = [{}]
    taken = set()

    def define(scope: dict[str, str], text: str) -> None:
        for name in re.findall(r"%[\w.$-]+", text):
            scope[name] = f"{name}.again{len(taken)}" if name in taken else name
            taken.add(scope[name])

    def unique(found: re.Match) -> str:
        name, mark, number = found[0].partition("#")
        return next((scope[name] for scope in reversed(scopes) if name in scope), name) + mark + number

    for line in text.splitlines():
        line = re.sub(r"\s*loc\((?:[^()]|\([^()]*\))*\)", "", line).strip()
        if line.startswith("}"):
            scopes.pop()
        results = re.match(r"%.*? = ", line)
        define(scopes[-1], results[0] if results else "")
        if line.endswith(("{", "({")):
            scopes.append({})
        if loop := re.search(r"scf\.for (%\S+) =", line):
            carried = re.search(r"iter_args\(([^)]*)\)", line)
            define(scopes[-1], " ".join([loop[1], *re.findall(r"(%\S+) = ", carried[1] if carried else "")]))
        elif line.startswith("^"):
            define(scopes[-1], line)
        yield re.sub(_NAME, unique, line)


def _add(function: Function, item: Operation | Loop) -> None:
    block = item.block
    block.items.append(item)
    if isinstance(item, Operation):
        if item.name == "scf.yield":
            block.yielded = item.operands
        if not isinstance(block.owner, Operation) or block.owner.name != "tt.reduce":
            function.operations.append(item)
        for result in item.results:
            function.made[result] = item


def _loop(function: Function, line: str, block: Block) -> Loop | None:
    found = re.match(
        rf"(?:({_NAME})(?::\d+)? = )?scf\.for ({_NAME}) = ({_NAME}) to ({_NAME}) step ({_NAME})(.*)", line
    )
    if found is None:
        return None
    result, induction, low, high, step, rest = found.groups()
    carried = re.search(r"iter_args\(([^)]*)\)", rest)
    pairs = re.findall(rf"({_NAME}) = ({_NAME})", carried[1]) if carried else []
    names, initial = tuple(n for n, _ in pairs), tuple(v for _, v in pairs)
    loop = Loop(induction, low, high, step, names, initial, block)
    function.inductions[induction] = loop
    for i, name in enumerate(names):
        function.carried[name] = loop, i
    if result:
        function.results[result] = loop
    return loop


def _operation(line: str, block: Block) -> Operation | None:
    found = re.match(
        rf'(?:({_NAME}(?::\d+)?(?:, {_NAME})*) = )?"?([a-z_]+\.[\w.]+|[a-z]+\.[a-z_]+)"?(.*)', line
    )
    if found is None:
        return None
    made, name, rest = found.groups()
    results = tuple(r.partition(":")[0] for r in made.split(", ")) if made else ()
    return Operation(name, results, tuple(re.findall(_NAME, rest)), _types(rest), line, block)


def _types(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"(?:!\w+\.\w+|tensor)<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*>", text))
