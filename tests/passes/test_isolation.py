"""Ops without a template run sample by sample where the batch is known to pass them untouched."""

import pytest
import torch
from torch._inductor.utils import fresh_inductor_cache

import bi_compile
from bi_compile.report import ISOLATED, collect
from bi_compile.testing import BatchVarianceError, assert_batch_invariant

X = torch.randn(5, 12, 12)


def token_mixing(x):
    return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


def filtered(x):
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.linspace(0, 1, 7)[:, None], n=12, dim=1)


def log_determinant(x):
    x = x.tanh()
    return torch.linalg.slogdet(x @ x.mT + torch.eye(12))[1]


def heads_merged(x):
    blocks = x.tanh().reshape(x.shape[0] * 3, 4, 12)
    return torch.linalg.inv(blocks @ blocks.mT + torch.eye(4)).reshape(x.shape[0], -1)


def exponential(x):
    return torch.linalg.matrix_exp(x.nan_to_num().clamp(-9, 9) / 12)


ISOLATED_OPS = {
    "matrix exponential": (exponential, "aten.linalg_matrix_exp"),
    "fft twice": (token_mixing, "aten._fft_c2c"),
    "spectral filter": (filtered, "aten._fft_c2r"),
    "determinant": (log_determinant, "aten._linalg_slogdet"),
    "merged with the batch": (heads_merged, "aten.linalg_inv_ex"),
    "singular values": (lambda x: torch.linalg.svdvals(x.tanh().nan_to_num()), "aten._linalg_svd"),
    "special function": (lambda x: torch.special.zeta(x.abs() + 1.5, x.exp()), "aten.special_zeta"),
    "pseudo-inverse": (
        lambda x: torch.linalg.pinv(x.nan_to_num()[:, :, :5]),
        "aten.linalg_pinv.atol_rtol_tensor",
    ),
}


@pytest.mark.parametrize("name", ISOLATED_OPS)
def test_runs_sample_by_sample(name):
    torch.compiler.reset()
    fn, op = ISOLATED_OPS[name]
    with collect() as report, fresh_inductor_cache():
        compiled = torch.compile(fn, backend="batch_invariant")
        assert_batch_invariant(compiled, X, sizes=(1, 2, 3, 7), trials=1, reference=fn)
    assert op in {v.op.removesuffix(".default") for v in report.verdicts if v.kind == ISOLATED}
    # What makes complex numbers of real ones is done with them, sample by sample.
    assert "prims.convert_element_type" not in {v.op for v in report.verdicts}


@torch.library.custom_op("bi_compile_tests::centred", mutates_args=())
def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean()


@centred.register_fake
def _(x):
    return torch.empty_like(x)


@pytest.fixture
def _nothing_allowed():
    from bi_compile import allowed

    before = dict(allowed._allowed)
    yield
    allowed._allowed.clear()
    allowed._allowed.update(before)


@pytest.mark.usefixtures("_nothing_allowed")
def test_singular_vectors_that_nobody_reads_are_not_computed():
    """So the values are those of eager PyTorch, which takes another algorithm for them alone."""
    torch.compiler.reset()
    with fresh_inductor_cache():
        values = torch.compile(torch.linalg.svdvals, backend="batch_invariant")
        whole = torch.compile(lambda x: torch.linalg.svd(x)[1:], backend="batch_invariant")
        x = torch.randn(3, 24, 24)
        for found, vectors in ((values(x), False), (whole(x)[0], True)):
            alone = [torch.ops.aten._linalg_svd(part, True, vectors)[1] for part in x.split(1)]
            assert torch.equal(found, torch.cat(alone))


def test_a_custom_op_is_refused_until_somebody_vouches_for_it():
    torch.compiler.reset()
    fn = lambda x: torch.ops.bi_compile_tests.centred(x) * 2  # noqa: E731
    with pytest.raises(Exception, match=r"bi_compile_tests.centred.default has no batch-invariant lowering"):
        torch.compile(fn, backend="batch_invariant")(X)
    bi_compile.allow(torch.ops.bi_compile_tests.centred, batch_dims=0)
    torch.compiler.reset()
    compiled = torch.compile(fn, backend="batch_invariant")
    # The op itself mixes the whole tensor it is given; sample by sample it cannot.
    assert_batch_invariant(compiled, X, sizes=(1, 2, 3), trials=1, control=fn)
    assert torch.equal(compiled(X)[2:3], fn(X[2:3]))


@pytest.mark.usefixtures("_nothing_allowed")
def test_a_batch_elsewhere_than_vouched_for_is_refused():
    bi_compile.allow(torch.ops.bi_compile_tests.centred, batch_dims=1)
    torch.compiler.reset()
    with pytest.raises(Exception, match="has no batch-invariant lowering"):
        torch.compile(lambda x: torch.ops.bi_compile_tests.centred(x), backend="batch_invariant")(X)


def test_transforms_over_the_batch_are_refused():
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"BatchMixingError: aten._fft_r2c mixes the samples"):
        torch.compile(lambda x: torch.fft.rfft(x, dim=0).abs(), backend="batch_invariant")(X)


class Filter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.linspace(0, 1, 12))

    def forward(self, x):
        return x * torch.fft.fft(self.kernel).real


def test_what_parameters_alone_determine_is_run_once():
    torch.compiler.reset()
    assert_batch_invariant(torch.compile(Filter(), backend="batch_invariant"), X, sizes=(1, 3), trials=1)


def test_gradients_are_refused_by_name_and_say_why():
    torch.compiler.reset()
    x = X.clone().requires_grad_()
    compiled = torch.compile(lambda x: torch.fft.rfft(x).real, backend="batch_invariant")
    with pytest.raises(Exception, match=r"_fft_\w+\.default has no batch-invariant lowering") as refused:
        compiled(x).sum().backward()
    assert "in gradients it never can" in str(refused.value)


def test_an_input_only_guessed_to_be_shared_is_not_run_as_a_whole():
    torch.compiler.reset()
    fn = lambda x, other: x + torch.fft.fft(other).real.sum()  # noqa: E731
    other = torch.randn(3, 4)
    with pytest.raises(Exception, match=r"_fft_\w+\.default has no batch-invariant lowering") as refused:
        torch.compile(fn, backend="batch_invariant")(X, other)
    assert "bi_compile.mark_batch(x, None)" in str(refused.value)
    torch.compiler.reset()
    torch.compile(fn, backend="batch_invariant")(X, bi_compile.mark_batch(other, None))


WINDOW = torch.hann_window(16)


def spectrogram(x, window=None):
    window = WINDOW if window is None else window
    return torch.stft(x, 16, 4, window=window, return_complex=True).abs()


@pytest.mark.parametrize("window", [(), (WINDOW.clone(),)], ids=["global", "argument"])
@pytest.mark.parametrize("first", [1, 5], ids="{} first".format)
def test_a_window_is_no_batch(window, first):
    """Whatever batch comes first: one sample alone has no size that tells the batch from other dims."""
    torch.compiler.reset()
    signals = torch.randn(5, 100)
    with collect() as report, fresh_inductor_cache():
        compiled = torch.compile(spectrogram, backend="batch_invariant", fullgraph=True)
        found = {n: compiled(signals[:n].clone(), *window) for n in (first, 1, 5)}
    assert torch.equal(found[1], found[5][:1])
    assert_close = torch.testing.assert_close
    assert_close(found[5].double(), spectrogram(signals.double(), WINDOW.double()), rtol=1e-4, atol=1e-4)
    assert {v.op for v in report.isolated} == {"aten._fft_r2c.default"}


def test_random_ops_are_not_isolated():
    torch.compiler.reset()
    for x in X, X[:1]:
        with pytest.raises(Exception, match="random numbers depend on the position"):
            torch.compile(lambda x: x + torch.rand_like(x), backend="batch_invariant")(x)


def test_batch_norm_in_training_is_not_isolated_for_one_sample():
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"no batch-invariant lowering|mixes the samples"):
        torch.compile(torch.nn.BatchNorm1d(12).train(), backend="batch_invariant")(X[:1])


def test_stock_matrix_functions_show_the_batch():
    """The control of the table above: alone in it, stock Fourier transforms and factorisations do not."""
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(exponential, torch.randn(8, 12, 12))
