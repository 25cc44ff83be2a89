"""The user's line behind a stack or a node: `model.py:42, in forward:  x = self.bn(x)`."""

import re
from collections.abc import Sequence
from pathlib import Path
from traceback import FrameSummary

import torch
from torch import fx

TORCH = Path(torch.__file__).parent
_NOT_THE_USERS = (str(TORCH), str(Path(__file__).parent))


def user_frame(stack: Sequence[FrameSummary]) -> FrameSummary | None:
    """The innermost frame that is neither torch's nor ours, if there is one; None for an empty stack."""
    users = [summary for summary in stack if not summary.filename.startswith(_NOT_THE_USERS)]
    return users[-1] if users else (stack[-1] if stack else None)


def line_in(stack: Sequence[FrameSummary]) -> str | None:
    """The line of `user_frame`."""
    user = user_frame(stack)
    return None if user is None else _shown(user.filename, str(user.lineno), user.name, user.line or "")


def line_of(node: fx.Node) -> str | None:
    """The line that Dynamo noted for a node, if any."""
    trace = node.meta.get("stack_trace") or ""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', trace)
    return _shown(*found[-1]) if found else None


def _shown(file: str, line: str, function: str, code: str) -> str:
    function = re.sub(r"^torch_dynamo_resume_in_(.+)_at_\d+$", r"\1", function)
    place = f"{file}:{line}, in {function}"
    return f"{place}:  {code.strip()}" if code.strip() else place
