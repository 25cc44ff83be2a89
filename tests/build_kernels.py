"""Compile every family's CPU kernels into the cache, two at a time: `python tests/build_kernels.py`."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bi_compile.templates
from bi_compile.templates.cpu.build import build


def main() -> None:
    families = sorted(path.parent.name for path in Path(bi_compile.templates.__path__[0]).glob("*/cpu.cpp"))
    start = time.perf_counter()
    # The compiler is another process, so threads are enough.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, families))
    print(f"kernels: {', '.join(families)} ready in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
