"""The pytest plugin of bi_compile, loaded by pytest in every project that has bi_compile installed.

It imports no torch (which takes over two seconds): a project that never asks for invariance pays nothing.
"""

import hashlib
from collections.abc import Callable, Iterator
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
_SECTION = pytest.StashKey[str]()
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


@pytest.fixture
def batch_invariant(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """A function like `assert_batch_invariant` that compiles what it is given.

    `batch_invariant(model, *inputs, control=True, reference=True, **options)` compiles the model with
    --bi-backend, moves it and the inputs to --bi-device and draws batches by --bi-profile. `control` and
    `reference` may be True for the model as it is. Returns the report. A failure has a section that names the
    first op whose bits change and says what the control does.
    """

    def check(model: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return _check(request, model, inputs, options)

    return check


def _check(
    request: pytest.FixtureRequest,
    model: Callable[..., Any],
    inputs: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    __tracebackhide__ = True
    import torch

    from bi_compile.testing.compiling import compiled
    from bi_compile.testing.invariance import assert_batch_invariant
    from bi_compile.testing.messages import BatchVarianceError
    from bi_compile.testing.trees import map_tensors

    node = request.node
    backend, device, profile = (
        str(request.config.getoption(f"--bi-{name}")) for name in ("backend", "device", "profile")
    )
    if isinstance(model, torch.nn.Module):
        model = model.to(device)
    inputs = tuple(map_tensors(tree, lambda x: x.to(device)) for tree in inputs)
    options = {**PROFILES[profile], **options}
    for partner in ("control", "reference"):
        if options.get(partner) is True:
            options[partner] = model
    run = model if backend == "eager" else compiled(model, backend)
    try:
        report = assert_batch_invariant(run, *inputs, **options)
    except Exception as error:
        node.user_properties.append((_PROPERTY, "failed"))
        if isinstance(error, BatchVarianceError):
            node.stash[_SECTION] = _section(error, backend, model, inputs, options)
        raise
    node.user_properties.append((_PROPERTY, f"{report.rows} rows in {report.batches} batches"))
    return report


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
    report = yield
    if call.excinfo is None:
        return report
    # Part of the failure itself: a section of captured output would be hidden by --show-capture=no.
    if _SECTION in item.stash and hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection("batch invariance", item.stash[_SECTION], "-")
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
    made = [value for name, value in properties if name == _PROPERTY]
    if made:
        failed = made.count("failed")
        rows = sum(int(value.split()[0]) for value in made if value != "failed")
        backend = terminalreporter.config.getoption("--bi-backend")
        checks = f"{len(made)} check{'s' * (len(made) != 1)}"
        terminalreporter.write_line(
            f"batch invariance ({backend}): {checks}, {rows} rows compared, {failed} failed"
        )
    for path in sorted({value for name, value in properties if name == _SAVED}):
        terminalreporter.write_line(f"batch invariance: saved as {path}")
