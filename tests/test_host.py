"""Whatever the host runs without asking the backend is computed canonically too, refused, or reported."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes
from torch.utils.flop_counter import FlopCounterMode

import bi_compile
from bi_compile.errors import BatchInvariantError, LeakWarning
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive, same_bits

X = order_sensitive(17, 300)
WEIGHT = order_sensitive(7, 300)


def compute(x):
    q = torch.tanh(x / 64).view(-1, 1, 3, 100)
    attended = F.scaled_dot_product_attention(q, q, q).flatten(1) + x
    return F.linear(attended, WEIGHT) + torch.softmax(x / 512, -1).sum(-1, keepdim=True)


@torch.compiler.disable
def disabled(x):
    return compute(x)


@bi_compile.eager()
def kept_out(x):
    return compute(x)


def after_a_print(x):
    y = x * 2
    print("a graph ends here")
    return compute(y)


def in_a_disabled_function(x):
    return disabled(x * 2) + 1


def in_an_eager_function(x):
    return kept_out(x * 2) + 1


def in_a_frame_that_is_skipped(x):
    for _ in range(2):
        x = compute(x)[..., :1] + x
        print("Dynamo cannot resume inside a loop")
    return x


OUTSIDE = [after_a_print, in_a_disabled_function, in_an_eager_function, in_a_frame_that_is_skipped]


@pytest.mark.parametrize("fn", OUTSIDE, ids=lambda f: f.__name__)
def test_code_outside_graphs_has_the_bits_of_eager_mode_in_every_batch(fn):
    torch.compiler.reset()
    compiled = torch.compile(fn, backend="batch_invariant")
    with torch.no_grad(), bi_compile.eager():
        want = fn(X)
    with torch.no_grad(), collect() as report, warnings.catch_warnings():
        warnings.simplefilter("error", LeakWarning)
        for start, count in ((0, 17), (3, 1), (2, 5), (0, 17)):
            got = compiled(X[start : start + count].clone())
            assert_same_bits(got, want[start : start + count], f"{count} from {start}")
    assert report.breaks
    assert not report.leaks
    assert report.breaks[0].where is not None
    assert report.breaks[0].where.startswith(__file__)
    assert not modes()


def test_control_stock_code_outside_graphs_changes_bits_with_the_batch():
    torch.compiler.reset()
    with torch.no_grad():
        whole = in_a_disabled_function(X)
        assert any(not same_bits(in_a_disabled_function(X[i : i + 1]), whole[i : i + 1]) for i in range(17))


def test_code_outside_graphs_is_canonical_when_another_call_of_compile_found_it():
    torch.compiler.reset()
    with torch.no_grad(), bi_compile.eager():
        want = in_a_disabled_function(X)
    with torch.no_grad():
        for _ in range(2):
            assert_same_bits(torch.compile(in_a_disabled_function, backend="batch_invariant")(X), want)


def test_graphs_themselves_run_outside_the_mode():
    torch.compiler.reset()
    seen, between = [], []

    @torch.library.custom_op("bi_compile_tests::spy", mutates_args=())
    def spy(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(modes()))
        return x.clone()

    spy.register_fake(torch.empty_like)

    @torch.compiler.disable
    def look():
        between.append(len(modes()))

    def fn(x):
        x = spy(x * 2)
        look()
        return spy(x * 3)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(fn, backend="batch_invariant", options={"on_unsupported": "ignore"})(X)
    assert seen == [0, 0]
    assert between == [1]


def test_the_mode_ends_with_the_call_also_by_an_exception():
    torch.compiler.reset()

    def fn(x):
        x = disabled(x)
        raise KeyError(x.shape)

    with pytest.raises(KeyError):
        torch.compile(fn, backend="batch_invariant")(X)
    assert not modes()


def test_other_backends_are_left_alone():
    torch.compiler.reset()
    inside = []

    @torch.compiler.disable
    def look(x):
        inside.append(modes())
        return x.sum(-1)

    def fn(x):
        return look(x * 2) + 1

    with torch.no_grad():
        torch.compile(fn, backend="batch_invariant")(X)
        assert len(inside.pop()) == 1
        torch.compiler.reset()
        with collect() as report:
            torch.compile(fn, backend="eager")(X)
    assert inside == [[]]
    assert not report.breaks


def unsupported_outside(x):
    y = x * 2
    disabled_digamma = torch.compiler.disable(torch.digamma)
    return disabled_digamma(y) + 1


def test_an_op_without_canonical_form_outside_graphs_is_reported_once_a_line():
    torch.compiler.reset()
    compiled = torch.compile(unsupported_outside, backend="batch_invariant")
    with collect() as report, warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("default")
        for _ in range(2):
            compiled(X)
    messages = [str(w.message) for w in caught if issubclass(w.category, LeakWarning)]
    assert len(messages) == 1, messages
    lines = messages[0].splitlines()
    assert lines[0] == "outside graphs, aten.digamma.default runs as stock PyTorch"
    assert lines[1].startswith(f"  {__file__}:")
    assert lines[1].endswith("in unsupported_outside:  return disabled_digamma(y) + 1")
    assert lines[2].startswith("Hint: compute it by ops that have a canonical form")
    assert [leak.kind for leak in report.leaks] == ["outside graphs"]


def test_gradients_of_code_outside_graphs_are_reported_and_canonical_under_eager():
    torch.compiler.reset()

    @torch.compiler.disable
    def square(x):
        return x @ WEIGHT.T

    def gradient(fn, x):
        x = x.clone().requires_grad_()
        with bi_compile.eager():
            loss = fn(x).tanh()
            loss.sum().backward()
        return x.grad

    compiled = torch.compile(lambda x: square(x * 2) + 1, backend="batch_invariant")
    with pytest.warns(
        LeakWarning, match="outside graphs, gradients are stock PyTorch's\nHint: call backward"
    ):
        compiled(X.clone().requires_grad_())
    with bi_compile.eager():
        whole, alone = (gradient(lambda x: square(x * 2) + 1, x) for x in (X, X[3:4]))
    assert_same_bits(whole[3:4], alone)


def refused(x):
    return torch.special.hermite_polynomial_h(x, 3)


def test_suppress_errors_does_not_turn_a_refusal_into_stock_execution():
    torch.compiler.reset()
    with (
        torch._dynamo.config.patch(suppress_errors=True),
        pytest.raises(Exception, match=r"UnsupportedOpError: aten\.special_hermite"),
    ):
        torch.compile(refused, backend="batch_invariant")(X)


def test_suppress_errors_does_not_hide_the_recompile_limit():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x * 2, backend="batch_invariant", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1, suppress_errors=True):
        compiled(torch.ones(3))
        with pytest.raises(BatchInvariantError, match="recompile limit reached"):
            compiled(torch.ones(4))


@pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile", "eager_then_compile"])
def test_stances_run_eager_mode_instead_of_stock_pytorch(stance):
    torch.compiler.reset()
    with torch.no_grad(), bi_compile.eager():
        want = compute(X)
    compiled = torch.compile(compute, backend="batch_invariant")
    with torch.no_grad(), torch.compiler.set_stance(stance):
        assert_same_bits(compiled(X), want)
        assert_same_bits(compiled(X[2:5]), want[2:5])
    assert not modes()


def test_fail_on_recompile_fails():
    torch.compiler.reset()
    compiled = torch.compile(compute, backend="batch_invariant")
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        compiled(X)


def test_a_stance_with_another_backend_is_reported():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x * 2, backend="batch_invariant")
    with (
        torch.compiler.set_stance(force_backend="eager"),
        pytest.warns(
            LeakWarning, match="set_stance compiles with 'eager' instead of this backend\nHint: leave"
        ),
    ):
        compiled(X)


def test_dynamo_switched_off_runs_eager_mode():
    torch.compiler.reset()
    with torch.no_grad(), bi_compile.eager():
        want = compute(X)
    with torch._dynamo.config.patch(disable=True), torch.no_grad():
        assert_same_bits(torch.compile(compute, backend="batch_invariant")(X), want)


def test_a_foreign_dispatch_mode_under_which_dynamo_compiles_nothing():
    torch.compiler.reset()
    with torch.no_grad(), bi_compile.eager():
        want = compute(X)
    with FlopCounterMode(display=False), torch.no_grad():
        assert_same_bits(torch.compile(compute, backend="batch_invariant")(X), want)


def test_an_environment_in_which_torch_compile_does_nothing_is_reported():
    code = (
        "import torch; compiled = torch.compile(lambda x: x + 1, backend='batch_invariant'); "
        "compiled(torch.ones(2))"
    )
    env = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "LeakWarning: every compiled function runs as stock PyTorch: TORCHDYNAMO_DISABLE=1" in run.stderr


def test_subnormal_numbers_that_one_thread_flushes_are_reported():
    """In a process of its own: there each of the user's lines is warned about once."""
    code = """
import torch, bi_compile
torch.set_num_threads(2)
x = torch.full((64, 65536), 2.0**-130)
assert (x * 1 == x).all()
torch.set_flush_denormal(True)
flushed = x * 1
torch.set_flush_denormal(False)
assert (flushed == 0).any() and (flushed != 0).any(), "stock: by the thread"
compiled = torch.compile(lambda x: x * 1, backend="batch_invariant")
compiled(x)
torch.set_flush_denormal(True)
torch.compile(lambda x: x * 2, backend="batch_invariant")(x)
with bi_compile.eager():
    x * 1
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.count("LeakWarning: torch.set_flush_denormal(True) holds in one thread") == 1
    assert "Hint: call torch.set_flush_denormal(False)." in run.stderr


def test_inductor_told_to_skip_the_check_of_the_final_graph_is_refused():
    from torch._inductor import config

    torch.compiler.reset()
    told = "x,post_grad_custom_POST_pass"
    with (
        config.patch(disabled_passes=told),
        pytest.raises(Exception, match=f"DisabledCheckError: disabled_passes='{told}' would skip the check"),
    ):
        torch.compile(lambda x: x * 5, backend="batch_invariant")(X)
    with pytest.raises(Exception, match="DisabledCheckError"):
        torch.compile(
            lambda x: x * 5,
            backend="batch_invariant",
            options={"disabled_passes": "POST_GRAD_CUSTOM_POST_PASS"},
        )(X)


def test_a_module_of_torch_whose_own_compile_compiles_nothing():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(300, 8), nn.GELU()).eval()
    with torch.no_grad(), bi_compile.eager():
        want = model(X)
    model.compile(backend="batch_invariant")
    with torch.no_grad(), collect() as report:
        assert_same_bits(model(X), want)
        assert_same_bits(model(X[2:5]), want[2:5])
    skipped = "all of 'forward' runs outside graphs: Dynamo skips its file"
    assert report.compilations or skipped in {b.reason for b in report.breaks}, "torch 2.14 compiles it"


def test_what_is_captured_whole_leaves_no_graph():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(300, 8), nn.GELU()).eval()
    with torch.no_grad(), collect() as report:
        torch.compile(model, backend="batch_invariant")(X)
        torch.compile(lambda x: model(x) * 2, backend="batch_invariant")(X)
    assert report.compilations == 2
    assert not report.breaks


def test_nothing_that_computes_outside_graphs_is_captured_itself():
    torch.compiler.reset()
    compiled = torch.compile(in_a_frame_that_is_skipped, backend="batch_invariant")
    with torch.no_grad(), collect() as report:
        for _ in range(2):
            compiled(X)
            assert not modes()
    assert report.compilations == 1, "the function it calls, and nothing of ours"
