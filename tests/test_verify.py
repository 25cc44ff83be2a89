"""The check of the final graph: what has no canonical lowering is refused, by name, with the user's line."""

import importlib.util
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.utils import fresh_inductor_cache
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import bi_compile
from bi_compile import inductor
from bi_compile.analysis.flow import follow
from bi_compile.errors import OldDeviceError, TritonNotFoundError, UnsupportedDeviceError
from bi_compile.pipeline import decompositions
from bi_compile.report import LEFT_ALONE, MIXES, collect
from bi_compile.verify import verify

hermite = torch.special.hermite_polynomial_h
X = torch.randn(4, 6)
REFUSED = {
    "qr over the batch": (lambda x: torch.linalg.qr(x).R, "aten.linalg_qr"),
    "batch_norm": (nn.BatchNorm1d(6).train(), "mixes the samples of a batch"),
    "dropout": (lambda x: F.dropout(x, 0.5), "random numbers depend on the position"),
    "a polynomial": (lambda x: hermite(x, 3), "aten.special_hermite_polynomial_h"),
    "narrow complex": (
        lambda x: torch.view_as_real(torch.complex(x.half(), x.half()) * 2),
        "torch.complex32",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_is_refused_by_name(name):
    torch.compiler.reset()
    fn, message = REFUSED[name]
    with pytest.raises(Exception, match=message) as caught:
        torch.compile(fn, backend="batch_invariant")(X)
    assert "Unsupported" in str(caught.value) or "BatchMixing" in str(caught.value)


def test_the_users_line_is_named():
    torch.compiler.reset()

    def model(x):
        return hermite(x, 3)  # the line to be named

    with pytest.raises(Exception, match=r"test_verify.py:\d+, in model:  return hermite\(x, 3\)"):
        torch.compile(model, backend="batch_invariant")(X)


def test_warn_leaves_the_op_and_reports_it():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: hermite(x, 1), backend="batch_invariant", options={"on_unsupported": "warn"}
    )
    with (
        collect() as report,
        pytest.warns(RuntimeWarning, match="leaves aten.special_hermite_polynomial_h.n_scalar alone"),
    ):
        assert torch.equal(compiled(X), hermite(X, 1))
    assert [v.op for v in report.left_alone] == ["aten.special_hermite_polynomial_h.n_scalar"]
    assert report.left_alone[0].kind == LEFT_ALONE
    assert "no promise for aten.special_hermite_polynomial_h.n_scalar" in str(report)


def test_warn_warns_again_when_results_could_come_from_a_cache():
    for _ in range(2):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda x: hermite(x, 3) + 1, backend="batch_invariant", options={"on_unsupported": "warn"}
        )
        with pytest.warns(RuntimeWarning, match="leaves aten.special_hermite_polynomial_h.n_scalar alone"):
            compiled(X)


def test_ignore_is_silent():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: hermite(x, 3), backend="batch_invariant", options={"on_unsupported": "ignore"}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        compiled(X)


def test_integers_need_no_order():
    torch.compiler.reset()
    i = torch.randint(0, 9, (4, 6))
    fn = lambda i: (i.cumsum(-1), i.sum(), i.sort(-1).values, i.amax(-1), (i > 3).any(-1), i.argmax(-1))  # noqa: E731
    for got, want in zip(torch.compile(fn, backend="batch_invariant")(i), fn(i), strict=True):
        assert torch.equal(got, want)


def test_explain_reports_every_op():
    report = bi_compile.explain(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Softmax(-1)))(X)
    assert report.canonical["bi_compile.linear"] == 1
    assert report.canonical["bi_compile.softmax"] == 1
    assert not report.left_alone
    assert report.compilations == 1
    assert "canonical" in str(report)


def test_meta_is_refused():
    torch.compiler.reset()
    with pytest.raises(Exception, match="no generated kernels for device 'meta'"):
        torch.compile(lambda x: x + 1, backend="batch_invariant")(torch.ones(3, device="meta"))


def test_the_dump_is_readable(tmp_path):
    torch.compiler.reset()
    model = nn.Linear(6, 5)
    torch.compile(model, backend="batch_invariant", options={"dump": str(tmp_path)})(X)
    (folder,) = tmp_path.iterdir()
    names = sorted(p.name for p in folder.iterdir())
    assert names[:2] == ["00_captured.py", "01_whole_ops.py"]
    assert "torch._C._nn.linear" in (folder / "00_captured.py").read_text()
    assert "bi_compile.differentiable_linear" in (folder / "01_whole_ops.py").read_text()
    rewritten = [p for p in sorted(folder.glob("*.py")) if "bi_compile.linear.default" in p.read_text()]
    assert rewritten
    assert "canonical" in (folder / "report.txt").read_text()


def test_caches_see_the_options_and_our_source(monkeypatch):
    from torch._dynamo.utils import counters

    from bi_compile import backend

    def hits_and_misses(**options):
        torch.compiler.reset()
        counters.clear()
        torch.compile(lambda x: (x * 3.25).exp().sum(-1), backend="batch_invariant", options=options)(X)
        found = counters["aot_autograd"]
        return found["autograd_cache_hit"], found["autograd_cache_miss"]

    with fresh_inductor_cache():
        assert hits_and_misses() == (0, 1)
        assert hits_and_misses() == (1, 0)
        assert hits_and_misses(dropout="per_sample") == (0, 1)
        monkeypatch.setattr(backend, "fingerprint", lambda: "an edited pass")
        assert hits_and_misses() == (0, 1)


def test_the_fingerprint_covers_every_source_file(tmp_path, monkeypatch):
    import shutil
    from pathlib import Path

    from bi_compile import pipeline

    copy = tmp_path / "bi_compile"
    shutil.copytree(Path(pipeline.__file__).parent, copy)
    monkeypatch.setattr(pipeline, "__file__", str(copy / "pipeline.py"))
    pipeline.fingerprint.cache_clear()
    before = pipeline.fingerprint()
    for name in ("passes/softmax.py", "templates/reduction/cpu.cpp", "templates/pointwise/functions.def"):
        (copy / name).write_text((copy / name).read_text() + " ")
        pipeline.fingerprint.cache_clear()
        after = pipeline.fingerprint()
        assert after != before, name
        before = after
    pipeline.fingerprint.cache_clear()


def mixing(x):
    return x - x.mean(0)  # the samples meet here


def test_mixing_is_refused_with_the_way_the_batch_took():
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"BatchMixingError: bi_compile\.mean mixes the samples") as caught:
        torch.compile(mixing, backend="batch_invariant")(X)
    shown = str(caught.value)
    assert "it is taken over dims [0], and the batch is on dim 0" in shown
    assert "the batch comes by" in shown
    assert "in mixing:  return x - x.mean(0)" in shown
    assert "mark_batch" in shown


@pytest.mark.parametrize("dim", [1, None])
def test_a_mark_says_where_the_batch_is(dim):
    torch.compiler.reset()
    x = bi_compile.mark_batch(X.clone(), dim)
    assert torch.isfinite(torch.compile(mixing, backend="batch_invariant")(x)).all()


def test_a_mask_that_all_samples_share_is_no_batch():
    torch.compiler.reset()
    x, mask = torch.randn(5, 3, 8), torch.randn(3, 3)

    def model(mask, x):
        return torch.softmax(x @ x.mT + mask, -1) @ x

    torch.compile(model, backend="batch_invariant")(mask, x)


def test_a_mark_on_a_missing_dim_is_refused():
    with pytest.raises(IndexError, match="dim 2 is out of range for a tensor of 2 dims"):
        bi_compile.mark_batch(X, 2)


def test_warn_lets_mixing_pass_and_reports_it():
    torch.compiler.reset()
    options = {"on_unsupported": "warn"}
    with collect() as report, pytest.warns(RuntimeWarning, match="leaves bi_compile.mean alone"):
        torch.compile(mixing, backend="batch_invariant", options=options)(X)
    (verdict,) = [v for v in report.verdicts if v.kind == MIXES]
    assert verdict.op == "bi_compile.mean"
    assert verdict.path[-1] == verdict.node
    assert verdict.value == "f32[6]"


def test_gradients_add_up_over_the_batch_by_nature():
    torch.compiler.reset()
    model = torch.nn.Linear(6, 3)
    torch.compile(model, backend="batch_invariant")(X).square().mean().backward()
    assert model.weight.grad is not None


def test_verdicts_show_where_the_batch_is():
    torch.compiler.reset()
    with collect() as report:
        options = {"on_unsupported": "warn"}  # from no cache
        torch.compile(lambda x: x.reshape(-1) * 2, backend="batch_invariant", options=options)(X)
    assert [v.value for v in report.verdicts][-1] in ("f32[B*6]", "f32[6*B]")
    assert all(v.batched for v in report.verdicts)


def test_an_op_without_kernels_for_its_device_is_refused():
    """No GPU is needed to see it: fake tensors have any device."""

    def graph_of(function, device):
        with FakeTensorMode():
            x = torch.empty(3, 8, device=device)
            return make_fx(function, decomposition_table=decompositions())(x).graph

    verify(graph := graph_of(lambda x: x.softmax(-1).sum(-1), "cuda"), "error", follow(graph, [(0,)]))
    graph = graph_of(lambda x: torch.cdist(x.unsqueeze(1), x.new_ones(3, 1, 8)), "xpu")
    with pytest.raises(UnsupportedDeviceError, match="no cdist kernels for device 'xpu'"):
        verify(graph, "warn", follow(graph, [(0,)]))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
@pytest.mark.parametrize("triton", [None, object()])
def test_cuda_devices_need_their_compiler(monkeypatch, capability, triton):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a name")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton)
    with FakeTensorMode():
        inputs = [torch.empty(3, device="cuda"), 4]
    if capability < (8, 0):
        with pytest.raises(OldDeviceError, match=r"a name, has compute capability 7\.5"):
            inductor.refuse_foreign_devices(inputs)
    elif triton is None:
        with pytest.raises(TritonNotFoundError, match="need Triton"):
            inductor.refuse_foreign_devices(inputs)
    else:
        inductor.refuse_foreign_devices(inputs)
