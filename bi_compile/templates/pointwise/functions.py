"""The list of canonical pointwise functions, read from `functions.def`."""

import re
from functools import cache
from pathlib import Path

DEFINITIONS = Path(__file__).with_name("functions.def")
_LINE = re.compile(r"^BI_(UNARY|BINARY)\((\w+), (.*)\)$", re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)\((\w+)\)((?:.*\\\n)*.*)$", re.MULTILINE)


@cache
def expressions() -> dict[str, tuple[int, str]]:
    """Function name -> (number of arguments, C++ expression over the vectors x and y of type V).

    The macros of the list are expanded, since generated kernels do not include it.
    """
    text = DEFINITIONS.read_text()
    found = {}
    for kind, name, expression in _LINE.findall(text):
        for macro, parameter, body in _MACRO.findall(text):
            call = re.fullmatch(rf"{macro}\((.*)\)", expression)
            if call:
                expression = re.sub(rf"\b{parameter}\b", call[1], re.sub(r"\s*\\\n\s*", " ", body)).strip()
        found[name] = (1 if kind == "UNARY" else 2, expression)
    return found
