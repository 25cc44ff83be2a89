"""Which line of a stack is the user's."""

import operator
import sysconfig
from traceback import FrameSummary

import torch

from bi_compile import user_lines

MODEL = FrameSummary("model.py", 3, "forward", line="x = sum(x)")
OF_TORCH = FrameSummary(torch.__file__, 1, "f", line="")
OF_PYTHON = FrameSummary(operator.__file__, 77, "add", line="return a + b")
INSTALLED = FrameSummary(f"{sysconfig.get_path('stdlib')}/site-packages/timm/model.py", 5, "f", line="y")


def test_lines_of_torch_and_of_python_itself_are_not_the_users():
    """From torch 2.15 on Dynamo traces `sum` through Python's own `operator.add`."""
    assert user_lines.user_frame([MODEL, OF_TORCH, OF_PYTHON]) is MODEL
    assert user_lines.user_frame([MODEL, INSTALLED, OF_PYTHON]) is INSTALLED
    assert user_lines.user_frame([OF_TORCH, OF_PYTHON]) is OF_PYTHON
    assert user_lines.user_frame([]) is None
