"""Configurations measured on the user's own device, kept in a file: `python -m bi_compile tune`.

Without it a product takes the configuration with the lowest price. Either way it is one of those whose order
of summation is certified to be the same, so a file moves times and never bits.
"""

import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from bi_compile import numerics
from bi_compile.errors import OutdatedTuningWarning, TuningError
from bi_compile.templates.contraction import gpu_certificates
from bi_compile.templates.contraction.gpu_configs import Config, candidates, rows_of_whole_lines
from bi_compile.templates.gpu import device

VERSION = 2
ROWS = (1, 16, 64, 128, 256, 512, 1024, 4096)
SHAPES = (
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (24576, 4096), (4096, 12288),
    (768, 4096), (4096, 512), (3584, 4096), (4096, 1792), (3072, 4096), (4096, 1536),
)  # fmt: skip
"""(N, K) of the projections of Llama-3-8B and Qwen3-8B, whole and in 8 shards."""

_CACHE = 100 * 2**20
"""Bytes of weights that are gone through before one is read again, so that none waits in the L2 cache."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Product = Callable[..., torch.Tensor]
Table = dict[str, dict[str, dict[str, list[Any]]]]


def tune(
    product: Product,
    shapes: Iterable[tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.bfloat16,
    rows: Iterable[int] = ROWS,
    report: Callable[[str], None] = print,
) -> Path:
    """Measure every certified configuration for weights [N, K] on the current device and keep the best.

    product: `gpu.product`, see `gpu.tune`. A file that cannot be used is written anew.
    Raises TuningError where configurations cannot be told to sum in one order, or one has other bits.
    """
    index = torch.cuda.current_device()
    allowed, capability = certified(device.processor(index), dtype), device.processor(index).capability
    file = _file(index)
    table = _kept(index, report)
    for n, k in shapes:
        if not rows_of_whole_lines(n, k, k, 1, dtype.itemsize):
            report(
                f"N {n:5} K {k:5}: not tuned, its rows are no whole 16 bytes; the shipped choice serves it"
            )
            continue
        copies = max(2, min(16, _CACHE // (n * k * dtype.itemsize)))
        weights = [torch.randn(n, k, device="cuda").to(dtype).t() for _ in range(copies)]
        found = table.setdefault(_name(dtype), {}).setdefault(f"{n}x{k}", {})
        for m in rows:
            x = torch.randn(m, k, device="cuda").to(dtype)
            expected = product(x, weights[0])
            before = _microseconds(product, x, weights, None)
            times = {}
            for config in _forms(allowed, k, dtype, capability):
                if not torch.equal(product(x, weights[0], config=config), expected):
                    raise TuningError.other_bits(str(config), f"[{m}, {k}] x [{k}, {n}]")
                times[config] = _microseconds(product, x, weights, config)
            best = min(times, key=times.__getitem__)
            found[str(m)] = list(best)
            report(f"N {n:5} K {k:5} M {m:4}  {times[best]:8.1f} us, was {before:8.1f} us  {tuple(best)}")
        _write(file, table)
    tuned.cache_clear()
    return file


def certified(processor: device.Processor, dtype: torch.dtype) -> list[Config]:
    """The shipped configurations, if the compiler makes one order of them. Raises TuningError."""
    configs = [p.config for p in candidates(processor, dtype, True)]
    forms = {c: "sequence" if c.walks(processor.capability) else "parallel" for c in configs}
    try:
        orders = {
            c: gpu_certificates.order(c, dtype, processor.capability, form) for c, form in forms.items()
        }
    except ValueError as error:
        raise TuningError.not_certified(processor.capability, str(error)) from error
    for config, order in orders.items():
        if order != orders[configs[0]]:
            raise TuningError.not_certified(processor.capability, f"{config} sums {order}")
    return configs


def _kept(index: int, report: Callable[[str], None]) -> Table:
    """What the file for a device holds already; one that cannot be used is emptied, as calls read it, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OutdatedTuningWarning)
            tuned(index)
    except (TuningError, OutdatedTuningWarning) as error:
        report(f"{str(error).splitlines()[0]}; it is written anew")
        _write(_file(index), {})
        tuned.cache_clear()
    return _read(_file(index))


def _forms(configs: list[Config], k: int, dtype: torch.dtype, capability: int) -> list[Config]:
    if k <= numerics.contraction_gpu_chunk(dtype.itemsize):
        return configs
    return [c._replace(parallel=p) for c in configs for p in (False, True) if p or c.walks(capability)]


def lookup(index: int, dtype: torch.dtype, m: int, n: int, k: int) -> Config | None:
    """The configuration measured for the nearest number of rows on the device `cuda:<index>`, or None."""
    found = tuned(index).get((_name(dtype), n, k))
    if not found:
        return None
    return found[min(found, key=lambda rows: abs(math.log2(rows) - math.log2(m)))]


@functools.cache
def tuned(index: int) -> Mapping[tuple[str, int, int], Mapping[int, Config]]:
    """What the file for a device says; nothing, with a warning, where another version wrote it.

    Raises TuningError for a file that cannot be read, or names a configuration that is not shipped.
    """
    file = _file(index)
    known: dict[tuple[str, int, int], dict[int, Config]] = {}
    for dtype, shapes in _read(file, warn=True).items():
        try:
            shipped = {p.config for p in candidates(device.processor(index), _DTYPES[dtype], True)}
            for shape, rows in shapes.items():
                n, k = map(int, shape.split("x"))
                known[dtype, n, k] = {int(m): Config(*values) for m, values in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TuningError.bad_file(str(file), repr(error)) from error
        for config in (c for key, rows in known.items() if key[0] == dtype for c in rows.values()):
            if config._replace(parallel=False) not in shipped:
                reason = f"{tuple(config)} is no configuration of this version for this device"
                raise TuningError.bad_file(str(file), reason)
    return known


def _read(file: Path, warn: bool = False) -> Table:
    """What the file holds; nothing where there is none, or one of another version."""
    if not file.exists():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        version, table = stored["version"], stored["configurations"]
    except (ValueError, KeyError, TypeError) as error:
        raise TuningError.bad_file(str(file), repr(error)) from error
    if version != VERSION:
        if warn:
            warnings.warn(OutdatedTuningWarning(str(file), version), stacklevel=2)
        return {}
    if not isinstance(table, dict):
        raise TuningError.bad_file(str(file), f"configurations: {table!r}")
    return table


def _write(file: Path, table: Table) -> None:
    """Aside, and renamed: another process reads either the whole file or the one before."""
    stored = {"version": VERSION, "triton": triton.__version__, "torch": torch.__version__}
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({**stored, "configurations": table}), encoding="utf-8")
    part.replace(file)


def _file(index: int) -> Path:
    from bi_compile.templates.cpu.build import cache_directory

    name = "-".join(torch.cuda.get_device_name(index).split())
    return cache_directory() / f"contraction-{name}.json"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _microseconds(
    product: Product, x: torch.Tensor, weights: Sequence[torch.Tensor], config: Config | None
) -> float:
    """Of one call: least of some replays of a CUDA graph over all weights, which leaves out the host."""
    product(x, weights[0], config=config)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for w in weights:
            product(x, w, config=config)
    best = math.inf
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end))
    return 1e3 * best / len(weights)
