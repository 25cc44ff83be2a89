"""The file of tuned configurations: it may choose among what is shipped, and nothing else."""

import json

import pytest
import torch

from bi_compile.errors import TuningError
from tests.interpreted import interpreter as _  # noqa: F401

from bi_compile.templates.contraction import gpu_configs, gpu_tuning  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip

BF16 = torch.bfloat16
FIRST, SECOND = (priced.config for priced in gpu_configs.SM_90[:2])


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes a file for a Hopper of the name "Some GPU"."""
    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(device, "processor", lambda index: device.Processor(90, 132, 232448))
    gpu_tuning.tuned.cache_clear()

    def write(text: str) -> None:
        (tmp_path / "contraction-Some-GPU.json").write_text(text)
        gpu_tuning.tuned.cache_clear()

    yield write
    gpu_tuning.tuned.cache_clear()


def table(version: int, **rows) -> str:
    found = {m.removeprefix("m"): list(config) for m, config in rows.items()}
    return json.dumps({"version": version, "configurations": {"bfloat16": {"512x256": found}}})


def test_the_nearest_number_of_rows_decides(stored):
    assert gpu_tuning.lookup(0, BF16, 1, 512, 256) is None
    stored(table(gpu_tuning.VERSION, m1=FIRST, m64=SECOND._replace(parallel=True)))
    assert gpu_tuning.lookup(0, BF16, 2, 512, 256) == FIRST
    assert gpu_tuning.lookup(0, BF16, 5000, 512, 256) == SECOND._replace(parallel=True)
    assert gpu_tuning.lookup(0, BF16, 2, 256, 512) is None
    assert gpu_tuning.lookup(0, torch.float16, 2, 512, 256) is None


def test_a_file_of_another_version_is_not_read(stored):
    stored(table(gpu_tuning.VERSION + 1, m1=FIRST))
    assert gpu_tuning.lookup(0, BF16, 1, 512, 256) is None


def test_a_configuration_that_is_not_shipped_is_refused(stored):
    stored(table(gpu_tuning.VERSION, m1=FIRST._replace(block_k=32)))
    with pytest.raises(TuningError, match=r"Some-GPU\.json"):
        gpu_tuning.lookup(0, BF16, 1, 512, 256)


def test_a_broken_file_is_refused(stored):
    stored("{")
    with pytest.raises(TuningError, match="cannot use the tuned configurations"):
        gpu_tuning.lookup(0, BF16, 1, 512, 256)
