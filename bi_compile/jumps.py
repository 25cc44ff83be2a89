"""Conditional jumps in bytecode: which of them only guard an error?"""

from collections.abc import Sequence
from typing import Any

_LASTING = ("STORE_", "DELETE_", "IMPORT_", "POP_TOP", "LIST_", "SET_", "DICT_", "MAP_")
"""Instructions with an effect that outlives the condition they stand in, or that drop a call's result."""

_LEAVING = ("RETURN_", "YIELD_", "SEND", "RAISE_", "RERAISE")
_ALWAYS = ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")


def guards_an_error(jump: Any, code: Sequence[Any]) -> bool:
    """Whether a conditional jump leads, one way, to nothing but an error that this code does not catch.

    On that way may be further conditions, after whose other outcome all is as if the jump had gone the other
    way: `if size > 4 and strict: raise`.

    jump, code: of Dynamo's instructions, which have `opname`, the `target` of a jump and `exn_tab_entry`.
    """
    if jump.target is None or not jump.opname.startswith("POP_JUMP"):
        return False
    place = {id(instruction): at for at, instruction in enumerate(code)}
    ways = place[id(jump)] + 1, place[id(jump.target)]
    return any(_only_raises(way, other, code, place) for way, other in (ways, ways[::-1]))


def _only_raises(start: int, other: int, code: Sequence[Any], place: dict[int, int]) -> bool:
    """Whether all ways from `start` raise, or come to `other` with nothing done."""
    lasting = joined = False
    seen, ways = set(), [start]
    while ways:
        at = ways.pop()
        joined |= at == other
        if at in seen or at == other:
            continue
        seen.add(at)
        name = code[at].opname
        if name == "RAISE_VARARGS" and not _is_caught(code[at], code, place):
            continue
        if name.startswith(_LEAVING):
            return False
        lasting |= name.startswith(_LASTING)
        if name not in _ALWAYS:
            ways.append(at + 1)
        if "JUMP" in name and code[at].target is not None:
            ways.append(place[id(code[at].target)])
    return not (lasting and joined)


def _is_caught(instruction: Any, code: Sequence[Any], place: dict[int, int]) -> bool:
    """Whether an error there has a handler in this code; that of a `with` lets it pass."""
    entry = getattr(instruction, "exn_tab_entry", None)
    if entry is None:
        return False
    handler = place[id(entry.target)]
    return all(step.opname != "WITH_EXCEPT_START" for step in code[handler : handler + 2])
