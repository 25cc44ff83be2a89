"""A random model as a program of its own: to paste into an issue, to keep as a regression test."""

from bi_compile.testing.compiling import code_of_run
from bi_compile.testing.messages import InaccurateResultError
from bi_compile.testing.random_models import SAMPLES, RandomModel
from bi_compile.testing.values import code_of

_LITERAL = 64
"""Inputs of up to that many elements are written out."""


def script_of(
    model: RandomModel,
    *,
    backend: str,
    gradients: bool = False,
    dynamic: bool | None = None,
    failure: BaseException | None = None,
    place: tuple[tuple[int, ...], int, float | None] | None = None,
    outside: bool = False,
) -> str:
    """A program that is also a file of tests: the model, its weights' seed, its inputs, one comparison.

    backend, dynamic: of torch.compile; backend may be "eager" or "canonical".
    failure: its text is told at the top. place: the members of a batch, a position in it, and the value in
        place of every second member; without, all samples are compared.
    outside: a sample alone is computed under `bi_compile.eager()`, whose bits compiled graphs have.
    """
    members, position, hostile = place or (tuple(range(SAMPLES)), None, None)
    parts = [
        *told(failure),
        f"# {model!r}",
        *(["import copy", ""] if isinstance(failure, InaccurateResultError) else []),
        "import torch",
        *(["import bi_compile"] if backend == "canonical" or outside else []),
        "import torch.nn.functional as F",
        "from torch import nn",
        "",
        "",
        *_definitions(model, members),
        model.source,
        "",
        "def test_a_sample_has_the_same_bits_in_the_batch():",
        f"    torch.manual_seed({model.seed})",
        "    model = Model().eval().requires_grad_(False)",
        f"    run = {code_of_run(backend, dynamic=dynamic)}",
        *_inputs(model, members, hostile),
        *(_WITH_GRADIENT if gradients else _WITHOUT),
        *_comparison(position, len(members), hostile, outside),
        *(_ACCURACY if isinstance(failure, InaccurateResultError) else []),
        "",
        "",
        'if __name__ == "__main__":',
        "    test_a_sample_has_the_same_bits_in_the_batch()",
    ]
    return "\n".join(parts) + "\n"


_WITHOUT = ["", "    def result(run, x):", "        with torch.no_grad():", "            return run(x)", ""]
_WITH_GRADIENT = [
    "",
    "    def result(run, x):",
    "        x = x.clone().requires_grad_()",
    "        y = run(x)",
    "        (gradient,) = torch.autograd.grad(y, x, y.detach())",
    "        return gradient",
    "",
]
_ACCURACY = [
    "    # Root mean square errors against float64, as subjects.require_accurate has them.",
    "    with torch.no_grad():",
    "        stock, exact = model(x), copy.deepcopy(model).double()(x.double())",
    "    finite = exact.isfinite() & stock.isfinite()",
    "    eps = torch.finfo(stock.dtype).eps + 16 * torch.finfo(torch.float32).eps",
    "    errors = [(y.double() - exact)[finite].square().mean().sqrt().item() for y in (together, stock)]",
    "    allowed = 10 * errors[1] + eps * exact[finite].abs().max().item() + torch.finfo(stock.dtype).tiny",
    '    assert errors[0] <= allowed, f"error {errors[0]:.3g}, stock {errors[1]:.3g}, allowed {allowed:.3g}"',
]


def _definitions(model: RandomModel, members: tuple[int, ...]) -> list[str]:
    """What `_inputs` needs besides torch."""
    if model.kind == "normal" or model.inputs(SAMPLES)[list(members)].numel() <= _LITERAL:
        return []
    return [code_of(model.kind), ""]


def _inputs(model: RandomModel, members: tuple[int, ...], hostile: float | None) -> list[str]:
    x = model.inputs(SAMPLES)[list(members)]
    if x.numel() <= _LITERAL:
        lines = [f"    x = torch.tensor({x.tolist()}, dtype={x.dtype})"]
    elif model.kind == "normal":
        shape = (SAMPLES, *model.shape)
        lines = [
            f"    generator = torch.Generator().manual_seed({model.seed})",
            f"    x = torch.randn({shape}, dtype=torch.float64, generator=generator).to({x.dtype})",
            f"    x = x[{list(members)}]",
        ]
    else:
        lines = [
            f"    generator = torch.Generator().manual_seed({model.seed})",
            f"    x = torch.empty({(SAMPLES, *model.shape)}, dtype=torch.float64)",
            f"    x = draw(x, {x.dtype}, generator).to({x.dtype})[{list(members)}]",
        ]
    if hostile is not None:
        lines.append(f'    x[1::2] = float("{hostile}")')
    return lines


def _comparison(position: int | None, size: int, hostile: float | None, outside: bool) -> list[str]:
    eagerly = ["        with bi_compile.eager():", "            alone = result(model, x[row : row + 1])[0]"]
    rows = f"range(0, {size}{', 2' if hostile is not None else ''})" if position is None else f"({position},)"
    return [
        "    together = result(run, x)",
        f"    for row in {rows}:",
        *(eagerly if outside else ["        alone = result(run, x[row : row + 1])[0]"]),
        *comparison("alone", "together[row]", "in the batch"),
    ]


def comparison(want: str, got: str, how: str) -> list[str]:
    """Code, within a loop, that compares two results bit by bit, one NaN like another."""
    return [
        f"        bits = {{2: torch.int16, 4: torch.int32, 8: torch.int64}}[{want}.element_size()]",
        f"        got = torch.where({got}.isnan() & {want}.isnan(), {want}, {got})",
        f"        differ = got.contiguous().view(bits) != {want}.contiguous().view(bits)",
        "        if differ.any():",
        f"            first = {want}[differ][:3].tolist(), got[differ][:3].tolist()",
        f'            raise AssertionError("expected, alone: {{}}\\ngot, {how}: {{}}".format(*first))',
    ]


def told(failure: BaseException | None) -> list[str]:
    """Comments that tell what failed."""
    if failure is None:
        return []
    lines = [line for line in f"{type(failure).__name__}: {failure}".splitlines() if line.strip()]
    return [f"# {line}".rstrip() for line in lines[:12]]
