"""The command line: `python -m bi_compile` shows what is here, `... check module:factory` checks a model."""

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bi_compile
from bi_compile.errors import BatchInvariantError, FactoryError
from bi_compile.progress import Progress
from bi_compile.report import collect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 (good), 1 (not) or 2 (wrong usage)."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        return show_installation()
    if options.command == "tune":
        return tune(options.shapes, options.dtype)
    try:
        model, inputs, named = load(options.factory)
    except FactoryError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return check(model, inputs, named, as_json=options.json, page=options.html)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bi_compile",
        description="Without a command: versions, devices, compiler, kernel cache and supported ops.",
    )
    commands = parser.add_subparsers(dest="command", metavar="{check,tune}")
    checking = commands.add_parser(
        "check",
        help="explain a model and assert that it is batch-invariant",
        description="Explain a model, compile it, and compare the bits of every sample alone and in batches. "
        "Exit status: 0 if they are the same, 1 if not, 2 for wrong usage.",
    )
    checking.add_argument(
        "factory",
        metavar="package.module:factory",
        help="a function without arguments that returns (model, inputs)",
    )
    checking.add_argument("--json", action="store_true", help="print the report and the result as JSON")
    checking.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page")
    tuning = commands.add_parser(
        "tune",
        help="measure matrix products on the CUDA device of this machine",
        description="Measure the configurations of matrix products, which all have the same bits, on the "
        "current CUDA device and keep the fastest in a file in the kernel cache.",
    )
    tuning.add_argument(
        "shapes",
        nargs="*",
        type=_shape,
        metavar="NxK",
        help="weights; default: Llama-3-8B and Qwen3-8B, and 8 shards of them",
    )
    tuning.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    return parser


def _shape(text: str) -> tuple[int, int]:
    n, _, k = text.partition("x")
    if not (n.isdigit() and k.isdigit() and int(n) and int(k)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 6144x4096")
    return int(n), int(k)


def tune(shapes: Sequence[tuple[int, int]], dtype: str) -> int:
    """Measure products for weights of these shapes [N, K]; 1 if it cannot be done."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: nothing to tune", file=sys.stderr)
        return 1
    from bi_compile.templates import contraction, registry

    assert contraction.mm
    try:
        registry.load("contraction", "cuda")
        from bi_compile.templates.contraction import gpu, gpu_tuning

        file = gpu.tune(shapes or gpu_tuning.SHAPES, getattr(torch, dtype))
    except BatchInvariantError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"stored in {file}")
    return 0


def show_installation() -> int:
    """Print what bi_compile finds on this machine; 1 if kernels cannot be built here."""
    import torch

    from bi_compile import inductor, supported
    from bi_compile.templates.cpu import build

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "bi_compile": bi_compile.__version__,
        "torch": torch.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "devices": f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads; "
        + (", ".join(cuda) or "no CUDA device"),
    }
    status = 0
    try:
        facts["compiler"] = inductor.require_compiler()
        facts["instruction set"] = build.chosen_isa()
        folder = build.cache_directory()
        facts["kernel cache"] = f"{folder}, {len(list(folder.glob('*.so')))} libraries"
    except BatchInvariantError as error:
        facts["kernels"] = str(error).replace("\n", f"\n{'':18}")
        status = 1
    for name, fact in facts.items():
        print(f"{name:<16}  {fact}")
    print(f"\nSupported ops\n\n{supported.as_text()}")
    return status


def load(path: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The model, arguments and keyword arguments that the factory at `package.module:factory` makes.

    Raises FactoryError; what the factory itself raises is left alone.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise FactoryError.no_path(path)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise FactoryError.no_module(module_name, str(error)) from error
    factory = getattr(module, name, None)
    if factory is None:
        found = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise FactoryError.no_attribute(module_name, name, found)
    if not callable(factory):
        raise FactoryError.wrong_value(path, f"nothing: it is {_kind(factory)}, not a function")
    made = factory()
    if not isinstance(made, tuple) or len(made) < 2 or not callable(made[0]):
        inside = f" of {', '.join(_kind(part) for part in made)}" if isinstance(made, tuple) else ""
        raise FactoryError.wrong_value(path, _kind(made) + inside)
    model, inputs = made[0], made[1:]
    if len(inputs) == 1 and isinstance(inputs[0], dict):
        return model, (), inputs[0]
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        inputs = tuple(inputs[0])
    return model, inputs, {}


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def check(
    model: Callable[..., Any],
    inputs: tuple[Any, ...],
    named: dict[str, Any],
    *,
    as_json: bool = False,
    page: Path | None = None,
) -> int:
    """Explain and check one model, print what was found, return the exit status."""
    import torch

    with Progress() as progress, torch.no_grad():
        progress.step("tracing")
        report = bi_compile.explain(model)(*inputs, **named)
        if report.refused or report.error:
            result = {"passed": False, "message": "not checked: it does not compile"}
        else:
            with collect() as compared:
                result = _compare(model, inputs, named, progress)
            # A number that crosses a graph break is a symbol from the second size of the batch on.
            report.questions += [asked for asked in compared.questions if asked not in report.questions]
        if page is not None:
            report.html(page)
    good = bool(result["passed"]) and not report.leaks
    if as_json:
        print(json.dumps({**json.loads(report.json()), "check": result}, indent=2))
    else:
        print(report)
        print(f"{'passed' if result['passed'] else 'failed'}: {result['message']}")
        if result.get("stock"):
            print(f"stock PyTorch, same check: {result['stock']}")
    return 0 if good else 1


def _compare(
    model: Callable[..., Any], inputs: tuple[Any, ...], named: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    import torch

    from bi_compile.testing import BatchVarianceError, assert_batch_invariant

    def run(fn: Callable[..., Any], name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            progress.tick(name)
            return fn(*args, **kwargs)

        if named:
            return assert_batch_invariant(lambda given: call(**given), named)
        return assert_batch_invariant(call, *inputs)

    compiled = torch.compile(model, backend="batch_invariant")
    start = time.monotonic()
    try:
        found = run(compiled, "comparing")
    except (BatchInvariantError, AssertionError) as error:
        return {"passed": False, "message": str(error)}
    seconds = time.monotonic() - start
    try:
        run(model, "comparing stock PyTorch")
        stock = "passes too on these inputs"
    except BatchVarianceError as error:
        stock = error.what
    return {
        "passed": True,
        "message": f"{found.rows} rows of {found.batches} batches have the bits of their sample alone",
        "stock": stock,
        "seconds": round(seconds, 3),
        "details": asdict(found),
    }
