"""Products of several matrices, in an order that no size decides.

PyTorch multiplies those first that cost least, and the number of rows of a batch enters the cost: of one row
(x a) b, of many x (a b). Here multi_dot goes from left to right, as einsum does without opt_einsum. With it
einsum takes the path that would be best if all sizes were equal, which the equation alone decides.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.backends import opt_einsum

_SIZE = 64
"""Of each letter of an equation."""


def multi_dot(tensors: Sequence[torch.Tensor], *, out: torch.Tensor | None = None) -> torch.Tensor:
    """That of torch.linalg: matrices, of which the first may be a row and the last a column, [N]."""
    count, dims = len(tensors), [x.dim() for x in tensors]
    if count < 2:
        raise RuntimeError(f"multi_dot(): expected at least 2 tensors but got {count}")
    if any(d != 2 for d in dims[1:-1]) or not {dims[0], dims[-1]} <= {1, 2}:
        raise RuntimeError(
            f"multi_dot(): tensors must be 2D, the first and the last may be 1D, but they have {dims} dims"
        )
    result = _from_left(tensors)
    return result if out is None else out.resize_(result.shape).copy_(result)


def chain_matmul(*matrices: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """That of torch: multi_dot of matrices, also of one, which is copied."""
    if any(x.dim() != 2 for x in matrices):
        raise RuntimeError(f"chain_matmul(): tensors must be 2D, but have {[x.dim() for x in matrices]} dims")
    if not matrices:
        raise RuntimeError("chain_matmul(): expected one or more matrices")
    result = _from_left(matrices)
    if len(matrices) == 1:
        result = result.clone()
    return result if out is None else out.resize_(result.shape).copy_(result)


def _from_left(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = torch.matmul(product, matrix)
    return product


ASSOCIATIONS = {
    torch.linalg.multi_dot: multi_dot,
    torch.ops.aten.linalg_multi_dot.default: multi_dot,
    torch.chain_matmul: chain_matmul,
    torch.ops.aten.chain_matmul.default: lambda matrices: chain_matmul(*matrices),
}
"""Stock function -> our function of the same signature."""


def path_settings() -> str:
    """What einsum's path depends on besides the equation: part of the key of a graph that is kept."""
    return f"{opt_einsum.is_available() and opt_einsum.enabled}-{opt_einsum.strategy}"


def choose_paths_by_equation(ours: Callable[[], bool]) -> None:
    """From now on, while `ours()`, no size enters the path that opt_einsum chooses for torch.einsum."""
    stock = opt_einsum.get_opt_einsum

    def get_opt_einsum() -> Any:
        package = stock()

        def contract_path(equation: str, *operands: torch.Tensor, optimize: Any) -> Any:
            shapes = [(_SIZE,) * x.dim() for x in operands]
            return package.contract_path(equation, *shapes, shapes=True, optimize=optimize)

        return SimpleNamespace(contract_path=contract_path) if package is not None and ours() else package

    setattr(opt_einsum, "get_opt_einsum", get_opt_einsum)  # noqa: B010 -- of a module that is an object
