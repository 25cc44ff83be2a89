"""Tuning on the device: another choice of configurations, the same bits."""

import pytest
import torch

from tests.bits import assert_same_bits, order_sensitive

if torch.cuda.is_available():
    from bi_compile.errors import TuningError
    from bi_compile.templates.contraction import gpu, gpu_tuning
    from bi_compile.templates.gpu import device

BF16 = torch.bfloat16
N, K = 256, 512


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where the result is kept, and none before or after."""

    def forget() -> None:
        gpu_tuning.tuned.cache_clear()
        gpu._plan.cache_clear()

    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(tmp_path))
    forget()
    yield gpu_tuning._file(torch.cuda.current_device())
    monkeypatch.undo()
    forget()


def test_what_is_tuned_has_the_bits_of_what_was_not(file):
    capability = device.processor(torch.cuda.current_device()).capability
    if capability >= 100:
        with pytest.raises(TuningError, match="no certificate"):
            gpu.tune([(N, K)], BF16, (1,))
        return
    a, w = (order_sensitive(rows, K, dtype=BF16).cuda() for rows in (300, N))
    before = {m: gpu.product(a[:m], w.t()) for m in (1, 17, 300)}
    assert gpu.tune([(N, K)], BF16, (1, 64)) == file
    known = gpu_tuning.tuned(torch.cuda.current_device())["bfloat16", N, K]
    assert set(known) == {1, 64}
    for m, expected in before.items():
        assert gpu_tuning.lookup(torch.cuda.current_device(), BF16, m, N, K) == known[1 if m == 1 else 64]
        found = gpu.product(a[:m], w.t())
        assert_same_bits(found, expected, f"{m} rows")
        assert_same_bits(found, before[300][:m], f"{m} rows alone")
    truth = a.double() @ w.double().t()
    assert (before[300].double() - truth).abs().max() <= 2.0**-8 * truth.abs().max()
