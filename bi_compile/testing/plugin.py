"""The pytest plugin of bi_compile, loaded by pytest in every project that has bi_compile installed.

It imports no torch (which takes over two seconds): a project that never asks for invariance pays nothing.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROFILES = {
    "fast": {"sizes": (1, 2, 3, 7), "trials": 1},
    "thorough": {"sizes": (1, 2, 3, 4, 7, 8, 16, 33), "trials": 2},
    "nightly": {"sizes": (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 64, 129), "trials": 8},
}
"""What the fixture gives to `assert_batch_invariant` where a test says nothing else."""

_PROPERTY = "batch_invariant"
_SAVED = "batch_invariant_saved"
_CHECKS = pytest.StashKey["_Checks"]()
_ITEM = pytest.StashKey[pytest.Item]()
_PROGRAM = "_has_the_same_bits_in_the_batch():"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bi_compile", "batch invariance")
    group.addoption(
        "--bi-backend", default="batch_invariant", help='of torch.compile, or "eager" for models as they are'
    )
    group.addoption("--bi-profile", default="fast", choices=list(PROFILES), help="how many batches are drawn")
    group.addoption("--bi-device", default="cpu", help="where models and inputs are moved to")
    group.addoption(
        "--bi-save",
        metavar="FOLDER",
        help="write each failing random model or decoder there, as a file of tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "batch_invariance: a test that compares bits across batches")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that use the fixture are marked, so that `-m batch_invariance` picks them."""
    if _PROPERTY in getattr(item, "fixturenames", ()):
        item.add_marker("batch_invariance")


@dataclass
class _Checks:
    """Those of one test. Hypothesis makes many with one model, and more where it shrinks a failure.

    compiled: models by what is called, kept so that no other gets the place of one in memory.
    section: of the last failure, not put together before the test has ended.
    """

    made: int = 0
    rows: int = 0
    batches: int = 0
    failed: bool = False
    compiled: dict[tuple[Any, ...], tuple[Any, Any]] = field(default_factory=dict)
    section: Callable[[], str] | None = None

    def __str__(self) -> str:
        made = f"{self.made} check{'s' * (self.made != 1)}"
        return f"{made}, {self.rows} rows in {self.batches} batches{', failed' * self.failed}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    item.config.stash[_ITEM] = item
    return (yield)


@pytest.fixture(scope="session")
def batch_invariant(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function like `assert_batch_invariant` that compiles what it is given.

    `batch_invariant(model, *inputs, control=True, reference=True, **options)` compiles the model with
    --bi-backend, moves it and the inputs to --bi-device and draws batches by --bi-profile. `control` and
    `reference` may be True for the model as it is. Returns the report. A failure has a section that names the
    first op whose bits change and says what the control does.

    One function serves the whole session, as hypothesis wants it of fixtures for `@given`: what it finds goes
    to the test that runs. A test compiles a model once for all inputs that differ in the batch alone.
    """

    def check(model: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return _check(request.config.stash[_ITEM], model, inputs, options)

    return check


def _check(
    item: pytest.Item, model: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    __tracebackhide__ = True
    import torch

    from bi_compile.testing.invariance import assert_batch_invariant
    from bi_compile.testing.messages import BatchVarianceError
    from bi_compile.testing.trees import map_tensors

    checks = item.stash.setdefault(_CHECKS, _Checks())
    backend, device, profile = (
        str(item.config.getoption(f"--bi-{name}")) for name in ("backend", "device", "profile")
    )
    if isinstance(model, torch.nn.Module):
        model = model.to(device)
    inputs = tuple(map_tensors(tree, lambda x: x.to(device)) for tree in inputs)
    options = {**PROFILES[profile], **options}
    for partner in ("control", "reference"):
        if options.get(partner) is True:
            options[partner] = model
    checks.made += 1
    try:
        run = model if backend == "eager" else _compiled(checks, model, backend, inputs, options)
        report = assert_batch_invariant(run, *inputs, **options)
    except Exception as error:
        checks.failed = True
        if isinstance(error, BatchVarianceError):
            failure, gradients = error, torch.is_grad_enabled()

            def section() -> str:
                with torch.set_grad_enabled(gradients):
                    return _section(failure, backend, model, inputs, options)

            checks.section = section
        raise
    checks.rows += report.rows
    checks.batches += report.batches
    return report


def _compiled(
    checks: _Checks,
    model: Callable[..., Any],
    backend: str,
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> Callable[..., Any]:
    """The model compiled, by the form of one sample: Dynamo gives a function up that meets too many forms."""
    import torch

    from bi_compile.testing.batches import Pool
    from bi_compile.testing.compiling import compiled
    from bi_compile.testing.trees import leaves

    pool = Pool.of(inputs, options.get("batch_dims", 0), options.get("padding"))
    sample = leaves(pool.take(pool.alone(0)))
    form = ((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for _, x in sample)
    key = (id(model), *form)
    if key not in checks.compiled:
        checks.compiled[key] = model, compiled(model, backend)
    return checks.compiled[key][1]


def _section(
    error: Exception,
    backend: str,
    model: Callable[..., Any],
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> str:
    """The difference, the first op that makes it (as it is, or of the canonical ops), and the control."""
    import bi_compile
    from bi_compile.testing.bisection import bisect

    taken = {k: v for k, v in options.items() if k in ("batch_dims", "sizes", "trials", "neighbours", "seed")}
    ours = backend == "batch_invariant"
    try:
        first = bisect(model, *inputs, **taken, under=bi_compile.eager if ours else None)
    except Exception as failed:
        first = f"bisect could not tell the op: {failed}"
    run_as = "canonical ops" if ours else "eager PyTorch"
    found = first or f"no op changes its bits in {run_as}, run one by one: the compiled graph does"
    told = _of_control(options.get("control") or model, inputs, options) if backend != "eager" else ""
    return f"backend: {backend}\n{error}\n\n{found}{told}"


def _of_control(control: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> str:
    from bi_compile.testing.invariance import assert_batch_invariant

    alike = {**options, "control": None, "reference": None}
    try:
        assert_batch_invariant(control, *inputs, **alike)
    except Exception as error:
        return f"\n\nthe control fails, too: {str(error).splitlines()[0]}"
    return "\n\nthe control passes the same check: the backend alone makes the difference"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    checks = item.stash.get(_CHECKS, None)
    if checks and call.when == "call":
        item.user_properties.append((_PROPERTY, str(checks)))
    report = yield
    if call.excinfo is None:
        return report
    # Part of the failure itself: a section of captured output would be hidden by --show-capture=no.
    if checks and checks.section and hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection("batch invariance", checks.section(), "-")
    if folder := item.config.getoption("--bi-save"):
        for program in filter(lambda note: _PROGRAM in note, _notes(call.excinfo.value)):
            path = Path(folder) / f"test_found_{hashlib.sha256(program.encode()).hexdigest()[:10]}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(program)
            report.user_properties.append((_SAVED, str(path)))
    return report


def _notes(error: BaseException) -> Iterator[str]:
    """Of an error, or of all that hypothesis found in one test."""
    yield from getattr(error, "__notes__", ())
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _notes(one)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line of all checks, also of those that other processes made (pytest-xdist), and what was saved."""
    properties = [
        property
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for property in report.user_properties
    ]
    made = [re.findall(r"\d+", value) for name, value in properties if name == _PROPERTY]
    if made:
        failed = sum(name == _PROPERTY and value.endswith("failed") for name, value in properties)
        count, rows = (sum(int(numbers[place]) for numbers in made) for place in (0, 1))
        backend = terminalreporter.config.getoption("--bi-backend")
        checks = f"{count} check{'s' * (count != 1)}"
        terminalreporter.write_line(
            f"batch invariance ({backend}): {checks}, {rows} rows compared, {failed} failed"
        )
    for path in sorted({value for name, value in properties if name == _SAVED}):
        terminalreporter.write_line(f"batch invariance: saved as {path}")
