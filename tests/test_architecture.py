"""Who may import whom (docs: the parts). No circles, and torch stays out of what must not load it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bi_compile"

# Part -> the parts its modules may import at the top of a file, besides itself.
ALLOWED = {
    "numerics": set(),
    "errors": set(),
    "options": {"errors", "inductor"},
    "allowed": set(),
    "batch": set(),
    "inputs": {"batch"},
    "jumps": set(),
    "user_lines": set(),
    "dynamo": {"dynamo_sizes", "dynamo_tracing", "errors", "report", "user_lines"},
    "dynamo_sizes": {"batch", "inputs", "jumps", "user_lines"},
    "dynamo_tracing": set(),
    "inductor": {"errors", "templates.pointwise"},
    "analysis": {"allowed", "errors"},
    "templates.registry": {"errors"},
    "templates.cpu": {"errors", "inductor", "numerics"},
    "templates.gpu": {"errors", "numerics"},
    "templates.contraction": {
        "errors", "numerics", "templates.registry", "templates.gpu", "templates.pointwise",
    },
    "templates.convolution": {
        "errors", "numerics", "templates.registry", "templates.contraction", "templates.gpu",
    },
    "templates.reduction": {"errors", "numerics", "templates.registry", "templates.gpu"},
    "templates.softmax": {"errors", "numerics", "templates.registry", "templates.reduction", "templates.gpu"},
    "templates.normalization": {
        "errors", "numerics", "templates.registry", "templates.reduction", "templates.gpu",
    },
    "templates.attention": {
        "errors", "numerics", "templates.registry", "templates.contraction", "templates.gpu",
    },
    "templates.dropout": {"errors", "numerics", "templates.registry", "templates.reduction"},
    "templates.distance": {
        "errors", "numerics", "templates.registry", "templates.reduction", "templates.gpu",
    },
    "templates.order_statistics": {"errors", "numerics", "templates.registry", "templates.reduction"},
    "templates.scan": {"errors", "numerics", "templates.registry", "templates.reduction", "templates.gpu"},
    "templates.scatter": {"errors", "numerics", "templates.registry", "templates.reduction", "templates.gpu"},
    "templates.pointwise": {"errors", "numerics", "templates.registry", "templates.gpu"},
    "templates.isolation": {"templates.registry"},
    "templates": set(),
    "passes": {
        "analysis", "dynamo_tracing", "errors", "templates.contraction", "templates.convolution",
        "templates.reduction", "templates.softmax", "templates.normalization", "templates.attention",
        "templates.distance", "templates.dropout", "templates.order_statistics", "templates.pointwise",
        "templates.scan",
        "templates.scatter",
        "templates.isolation",
    },
    "pipeline": {"inductor", "passes"},
    "report": {"", "analysis", "errors", "inputs", "numerics", "user_lines"},
    "verify": {
        "analysis", "errors", "inductor", "passes", "report", "templates.dropout", "templates.isolation",
        "templates.pointwise", "templates.registry", "user_lines",
    },
    "debug": {"analysis", "inductor", "inputs", "report"},
    "backend": {
        "allowed", "analysis", "batch", "debug", "dynamo", "dynamo_sizes", "dynamo_tracing", "eager_mode",
        "errors", "inductor", "inputs", "options", "passes", "pipeline", "report", "verify",
    },
    "eager_mode": {
        "analysis", "dynamo", "dynamo_tracing", "errors", "options", "passes", "pipeline",
        "templates.pointwise", "user_lines",
    },
    "sampling": {"eager_mode"},
    "integrations": {"dynamo", "eager_mode", "errors", "passes", "sampling", "templates.attention"},
    "testing": {"errors", "report"},
    "supported": {"analysis", "passes", "pipeline", "templates.pointwise"},
    "progress": set(),
    "cli": {"", "errors", "progress", "report"},
    "__main__": {"cli"},
    "": set(),
}  # fmt: skip
PARTS = sorted(ALLOWED, key=len, reverse=True)


def part_of(module: str) -> str:
    return next(part for part in PARTS if module == part or part == "" or module.startswith(part + "."))


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Modules of ours imported when `path` is: not those imported in functions or for type checkers."""
    found = []
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bi_compile":
            base = node.module.removeprefix("bi_compile").removeprefix(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}".removeprefix(".")
                is_module = (ROOT / joined.replace(".", "/")).with_suffix(".py").exists()
                is_package = (ROOT / joined.replace(".", "/") / "__init__.py").exists()
                found.append(joined if is_module or is_package else base)
        pending.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_parts(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    part = part_of(own)
    for imported in imports(path):
        target = part_of(imported)
        assert target == part or target in ALLOWED[part], f"{own} may not import {imported}"


def test_every_part_exists():
    for part in ALLOWED:
        where = ROOT / part.replace(".", "/")
        assert where.is_dir() or where.with_suffix(".py").exists(), part


def test_private_torch_stands_in_one_file_for_each_host():
    private = (
        "torch._inductor",
        "torch._dynamo",
        "torch._guards",
        "torch._functorch",
        "torch._C",
        "torch.fx._",
    )
    for path in modules():
        if path.name in ("dynamo.py", "dynamo_sizes.py", "dynamo_tracing.py", "inductor.py"):
            continue
        code = ast.parse(path.read_text())
        for node in ast.walk(code):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not any(n.startswith(private) for n in names), f"{path}: {names}"


@pytest.mark.parametrize(
    "module",
    ["bi_compile", "bi_compile.errors", "bi_compile.numerics", "bi_compile.testing.plugin", "bi_compile.cli"],
)
def test_importing_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_guard_can_fail(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from bi_compile.backend import batch_invariant\nfrom bi_compile import numerics\n")
    assert set(imports(file)) == {"backend", "numerics"}


def test_files_hold_one_idea():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_every_pass_has_a_test_of_its_name():
    here = Path(__file__).parent
    for path in sorted((ROOT / "passes").glob("*.py")):
        if path.stem not in ("__init__", "rewrite"):
            assert (here / "passes" / f"test_{path.stem}.py").exists(), path.stem
    for path in sorted((ROOT / "templates").iterdir()):
        if (path / "contract.py").exists():
            assert (here / "templates" / f"test_{path.stem}.py").exists(), path.stem
