"""Compile a family's C++ kernels at first use and keep them on disk.

The compiler, its include paths, its OpenMP and its instruction set are the ones torch.compile itself uses
(`inductor.cpp_command`), so that our kernels and Inductor's link one runtime and run one vector math. A build
is named after a digest of its sources, its command line and the torch version: a stale one is never loaded.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from bi_compile import inductor, numerics
from bi_compile.errors import CacheDirectoryError, KernelBuildError

_TEMPLATES = Path(__file__).resolve().parent.parent
_FLAGS = (
    "-O3",
    "-fno-finite-math-only",
    "-fsigned-zeros",
    "-ffp-contract=off",
    "-fno-unsafe-math-optimizations",
    "-ftree-vectorize",
    "-Wno-unknown-pragmas",
    "-Wno-pedantic",
)


def build_and_load(family: str, *, isa: str | None = None) -> Path:
    """Compile `templates/<family>/cpu.cpp` unless cached, register its ops with torch, return the library.

    isa: "avx512", "avx2" or "portable" instead of the best one of this machine (BI_COMPILE_ISA).
    Raises CompilerNotFoundError, KernelBuildError, CacheDirectoryError.
    """
    library = build(family, isa=isa)
    torch.ops.load_library(str(library))
    return library


def build(family: str, *, isa: str | None = None) -> Path:
    """As `build_and_load`, without loading."""
    source = _TEMPLATES / family / "cpu.cpp"
    isa = isa or chosen_isa()
    definitions = [f"-D{name}={value}" for name, value in numerics.c_macros().items()]
    flags = [*_FLAGS, *definitions, f"-I{_TEMPLATES}"]
    command = inductor.cpp_command(source, flags=flags, isa=isa)
    key = _digest(family, command)
    target = cache_directory() / f"{family}-{isa}-{key}.so"
    if not target.exists():
        _compile(family, command, target)
    return target


def chosen_isa() -> str:
    """The instruction set kernels are built for: BI_COMPILE_ISA, or the best one of this machine."""
    return os.environ.get("BI_COMPILE_ISA") or inductor.best_isa()


def _digest(family: str, command: list[str]) -> str:
    # Where the package lies does not matter: its sources count by what they say.
    digest = hashlib.sha256(" ".join(command).replace(str(_TEMPLATES), "").encode())
    digest.update(torch.__version__.encode())
    for path in sorted([*(_TEMPLATES / family).glob("*.[cdh]*"), *(_TEMPLATES / "cpu").glob("*.h")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def cache_directory() -> Path:
    """Where built kernels are kept; made if it is not there. Raises CacheDirectoryError."""
    chosen = os.environ.get("BI_COMPILE_CACHE_DIR")
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "bi_compile"
    base = Path(chosen) if chosen else default
    try:
        base.mkdir(parents=True, exist_ok=True)
        if not os.access(base, os.W_OK):
            raise PermissionError("the directory is read-only")
    except OSError as error:
        if chosen:
            raise CacheDirectoryError(str(base), str(error)) from None
        # Nobody asked for the default place: a home that cannot be written is no reason to stop.
        base = Path(tempfile.gettempdir()) / f"bi_compile-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
    return base


def _compile(family: str, command: list[str], target: Path) -> None:
    # Built aside and renamed: another process either sees the whole library or none.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        run = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise KernelBuildError(family, " ".join(command), run.stderr)
        built.replace(target)
