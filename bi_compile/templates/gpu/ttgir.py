"""Just enough of a reader of TTGIR, Triton's form after layouts are chosen, to follow values in a kernel."""

import re
from dataclasses import dataclass, field

_NAME = r"%[\w.$-]+(?:#\d+)?"


@dataclass(eq=False)
class Operation:
    """One operation: its operands by name, and its line."""

    name: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    types: tuple[str, ...]
    text: str
    body: "list[Operation]" = field(default_factory=list)

    def operand_of(self, value: str) -> str:
        """The operand that the result `value` passes on: the one of the same number."""
        i = int(value.split("#")[1]) if "#" in value else 0
        return self.operands[i]


@dataclass(frozen=True, eq=False)
class Loop:
    """An scf.for: induction variable, bounds and the values it carries."""

    induction: str
    low: str
    high: str
    step: str
    names: tuple[str, ...]
    initial: tuple[str, ...]
    yielded: list[str] = field(default_factory=list)


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
        base, _, number = value.partition("#")
        if base in self.results:
            return self.results[base], int(number or 0), False
        if base in self.made:
            return self.made[base]
        if value in self.arguments:
            return value.lstrip("%")
        raise ValueError(f"{value} comes from nowhere")

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
    open_regions: list[Loop | Operation | None] = []
    for line in text.splitlines():
        line = re.sub(r"\s*loc\((?:[^()]|\([^()]*\))*\)", "", line).strip()
        if layout := re.match(r"(#\w+) = (#ttg\S*<.*>)", line):
            function.layouts[layout[1]] = layout[2]
            continue
        if "tt.func" in line:
            function.arguments.update(re.findall(rf"({_NAME}):", line))
            open_regions.append(None)
            continue
        if line.startswith("}"):
            closed = open_regions.pop() if open_regions else None
            if isinstance(closed, Operation):
                closed.types = _types(line)
            if line.rstrip().endswith("{"):
                open_regions.append(None)
            continue
        if loop := _loop(function, line):
            open_regions.append(loop)
            continue
        operation = _operation(line)
        if operation is not None:
            inside = next((r for r in reversed(open_regions) if isinstance(r, Operation)), None)
            if operation.name == "scf.yield":
                loops = [r for r in open_regions if isinstance(r, Loop)]
                if loops and open_regions[-1] is loops[-1]:
                    loops[-1].yielded.extend(operation.operands)
            if inside is not None:
                inside.body.append(operation)
            else:
                function.operations.append(operation)
            for result in operation.results:
                function.made[result] = operation
        if line.endswith(("{", "({")):
            open_regions.append(
                operation if operation is not None and operation.name == "tt.reduce" else None
            )
    return function


def _loop(function: Function, line: str) -> Loop | None:
    found = re.match(
        rf"(?:({_NAME})(?::\d+)? = )?scf\.for ({_NAME}) = ({_NAME}) to ({_NAME}) step ({_NAME})(.*)", line
    )
    if found is None:
        return None
    result, induction, low, high, step, rest = found.groups()
    carried = re.search(r"iter_args\(([^)]*)\)", rest)
    pairs = re.findall(rf"({_NAME}) = ({_NAME})", carried[1]) if carried else []
    names, initial = tuple(n for n, _ in pairs), tuple(v for _, v in pairs)
    loop = Loop(induction, low, high, step, names, initial)
    function.inductions[induction] = loop
    for i, name in enumerate(names):
        function.carried[name] = loop, i
    if result:
        function.results[result] = loop
    return loop


def _operation(line: str) -> Operation | None:
    found = re.match(
        rf'(?:({_NAME}(?::\d+)?(?:, {_NAME})*) = )?"?([a-z_]+\.[\w.]+|[a-z]+\.[a-z_]+)"?(.*)', line
    )
    if found is None:
        return None
    made, name, rest = found.groups()
    results = tuple(r.partition(":")[0] for r in made.split(", ")) if made else ()
    return Operation(name, results, tuple(re.findall(_NAME, rest)), _types(rest), line)


def _types(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"(?:!\w+\.\w+|tensor)<(?:[^<>]|<(?:[^<>]|<[^<>]*>)*>)*>", text))
