"""The user's line behind a stack or a node: `model.py:42, in forward:  x = self.bn(x)`."""

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from traceback import FrameSummary

import torch
from torch import fx

TORCH = Path(torch.__file__).parent
_NOT_THE_USERS = (str(TORCH), str(Path(__file__).parent))
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def user_frame(stack: Sequence[FrameSummary]) -> FrameSummary | None:
    """The innermost frame of a file of the user's, if there is one.

    None for an empty stack.
    """
    users = [summary for summary in stack if is_users(summary.filename)]
    return users[-1] if users else (stack[-1] if stack else None)


def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor ours nor Python's own."""
    if filename.startswith(_NOT_THE_USERS):
        return False
    return not filename.startswith(_STANDARD_LIBRARY) or "-packages" in filename


def line_in(stack: Sequence[FrameSummary]) -> str | None:
    """The line of `user_frame`."""
    user = user_frame(stack)
    return None if user is None else _shown(user)


def frames_of(node: fx.Node) -> list[FrameSummary]:
    """The stack that Dynamo noted for a node, outermost first; empty if it noted none."""
    trace = node.meta.get("stack_trace") or ""
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', trace)
    return [FrameSummary(file, int(line), name, line=code) for file, line, name, code in lines]


def line_of(node: fx.Node) -> str | None:
    """The innermost line of `frames_of`."""
    frames = frames_of(node)
    return _shown(frames[-1]) if frames else None


def _shown(frame: FrameSummary) -> str:
    function = re.sub(r"^torch_dynamo_resume_in_(.+)_at_\d+$", r"\1", frame.name)
    place = f"{frame.filename}:{frame.lineno}, in {function}"
    return f"{place}:  {frame.line.strip()}" if frame.line and frame.line.strip() else place
