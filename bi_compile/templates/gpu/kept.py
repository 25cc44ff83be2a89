"""Device memory in which a kernel keeps what it reads again: what is loaded is what was stored there last.

Every load and store of it goes by one value of addresses, so that each thread finds its own numbers again, in
the order of the program. That no two programs share them is for the kernel to see to.
"""

from bi_compile.templates.gpu.ttgir import Function


def addresses(function: Function) -> dict[str, str]:
    """The arguments that point to such memory, each with the value of addresses that it is used by.

    Raises ValueError where the memory of one is stored to and loaded from in any other way.
    """
    stored, loaded = (_used(function, name) for name in ("tt.store", "tt.load"))
    found = {}
    for argument in stored.keys() & loaded.keys():
        used = stored[argument] | loaded[argument]
        if len(used) != 1:
            raise ValueError(f"{argument} is stored to and loaded from at {sorted(used)}")
        (found[argument],) = used
    for operation in function.operations:
        masked = len(operation.operands) != {"tt.store": 2, "tt.load": 1}.get(operation.name)
        if operation.name in ("tt.store", "tt.load") and operation.operands[0] in found.values() and masked:
            raise ValueError(f"a part of what is kept is used by a {operation.name}")
    return found


def _used(function: Function, name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for operation in function.operations:
        if operation.name == name:
            found.setdefault(function.argument(operation.operands[0]), set()).add(operation.operands[0])
    return found
