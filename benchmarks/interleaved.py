"""What the benchmarks of whole calls share: arms that take turns in one process, and the processor's name."""

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def seconds(
    arms: Mapping[str, Callable[..., object]], rounds: int, *inputs: object, warm: int = 3
) -> dict[str, list[float]]:
    """Seconds of each arm, called with the inputs, in each round: they take turns in beginning.

    warm: rounds before these that do not count.
    """
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(-warm, rounds):
        for arm in list(arms) if turn % 2 else list(arms)[::-1]:
            start = time.perf_counter()
            arms[arm](*inputs)
            if turn >= 0:
                found[arm].append(time.perf_counter() - start)
    return found


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
