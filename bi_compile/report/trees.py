"""Which template computes an op, and its tree in one line: read from the templates' own contracts."""

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bi_compile import numerics


@dataclass(frozen=True)
class Tree:
    """A family of templates.

    family: its folder below bi_compile/templates. summary: the first line of its contract.
    constants: name -> value of the constants of `numerics` that shape its trees.
    """

    family: str
    summary: str
    constants: dict[str, int]

    def __str__(self) -> str:
        constants = ", ".join(f"{name} {value}" for name, value in self.constants.items())
        return f"{self.summary} {f'({constants})' if constants else ''}".rstrip()


def tree_of(op: str) -> Tree | None:
    """The tree of a canonical op such as "bi_compile.mm" or "aten.erf.default"."""
    from bi_compile.templates import registry

    namespace, _, name = op.partition(".")
    if namespace == "bi_compile":
        family = registry.ops().get(name.removesuffix(".default"))
        return None if family is None else tree(family)
    return tree("pointwise")


@cache
def tree(family: str) -> Tree:
    """The tree of a family of templates."""
    spec = importlib.util.find_spec(f"bi_compile.templates.{family}")
    folder = Path(spec.origin or "").parent if spec else Path()
    text = ast.get_docstring(ast.parse((folder / "contract.py").read_text(encoding="utf-8"))) or ""
    ours = {name.removeprefix("BI_"): value for name, value in numerics.c_macros().items()}
    # Within a family a constant may go without its first word: KV_SPLIT for ATTENTION_KV_SPLIT.
    used = {
        name: value for name, value in ours.items() if re.search(rf"\b({_spellings(name, family)})\b", text)
    }
    return Tree(family, text.partition("\n")[0], used)


def _spellings(constant: str, family: str) -> str:
    word, _, rest = constant.partition("_")
    return f"{constant}|{rest}" if word == family.upper() else constant
