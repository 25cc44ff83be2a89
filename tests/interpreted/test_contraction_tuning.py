"""Tuning, its file and the use of it: the file may choose among what is shipped, and nothing else.

The device and the times are made up; products run in the interpreter. That a configuration without a proof is
not tried is in test_contraction_compiled, for it takes the compiler; tests/gpu tunes on a device.
"""

import json
from pathlib import Path

import pytest
import torch

from bi_compile import numerics
from bi_compile.cli import main
from bi_compile.errors import OutdatedTuningWarning, TuningError
from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.test_contraction import dot

from bi_compile.templates.contraction import gpu, gpu_configs, gpu_tuning  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip

BF16 = torch.bfloat16
FIRST, SECOND = (priced.config for priced in gpu_configs.SM_90[:2])
THIRD = gpu_configs.SM_90[4].config
LARGEST = gpu_configs.SM_90[-1].config


def forget() -> None:
    gpu_tuning.tuned.cache_clear()
    gpu._plan.cache_clear()
    gpu_configs.choose.cache_clear()


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes a file for a Hopper of the name "Some GPU"."""
    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(device, "processor", lambda index: device.Processor(90, 132, 232448))
    forget()

    def write(text: str) -> None:
        (tmp_path / "contraction-Some-GPU.json").write_text(text)
        gpu_tuning.tuned.cache_clear()

    yield write
    forget()


@pytest.fixture
def tuning(stored, tmp_path, monkeypatch):
    """The file; on the pretended Hopper SECOND is the fastest up to 16 rows, THIRD beyond, in parallel."""
    stock = torch.randn
    interpreter.use_dot(dot)
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_CHUNK", 256)
    monkeypatch.setattr(torch, "randn", lambda *shape, device="cpu": stock(*shape))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_tuning, "certified", lambda processor, dtype: [FIRST, SECOND, THIRD])

    def microseconds(product, x, weights, config) -> float:
        fastest = SECOND if len(x) <= 16 else THIRD._replace(parallel=x.shape[1] > 256)
        return 1.0 if config == fastest else 2.0

    monkeypatch.setattr(gpu_tuning, "_microseconds", microseconds)
    return tmp_path / "contraction-Some-GPU.json"


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
    with pytest.warns(OutdatedTuningWarning, match=r"Some-GPU\.json are of version 3"):
        assert gpu_tuning.lookup(0, BF16, 1, 512, 256) is None
    assert gpu_tuning.lookup(0, BF16, 1, 512, 256) is None  # and says so once


def test_a_configuration_that_is_not_shipped_is_refused(stored):
    stored(table(gpu_tuning.VERSION, m1=FIRST._replace(block_k=32)))
    with pytest.raises(TuningError, match=r"Some-GPU\.json"):
        gpu_tuning.lookup(0, BF16, 1, 512, 256)


BROKEN = {
    "half of it": "{",
    "not text": "\udcff",
    "another one's": '{"version": 2}',
    "a list": "[1]",
    "no table": '{"version": 2, "configurations": [1]}',
    "a dtype": '{"version": 2, "configurations": {"no_grad": {}}}',
    "shapes": '{"version": 2, "configurations": {"bfloat16": [1]}}',
    "a shape": '{"version": 2, "configurations": {"bfloat16": {"512": {}}}}',
    "rows": '{"version": 2, "configurations": {"bfloat16": {"512x256": {"few": [1]}}}}',
    "a configuration": '{"version": 2, "configurations": {"bfloat16": {"512x256": {"1": [1]}}}}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(stored, tmp_path, text):
    stored("")
    (tmp_path / "contraction-Some-GPU.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TuningError, match=r"cannot use the tuned configurations in .*Some-GPU\.json"):
        gpu_tuning.lookup(0, BF16, 1, 512, 256)


@pytest.mark.parametrize("k", [256, 512], ids=["one chunk", "chunks"])
def test_what_is_found_is_kept_and_used(tuning, monkeypatch, capsys, k):
    w = torch.randn(48, k).to(BF16).t()
    x = torch.randn(20, k).to(BF16)
    before = {m: gpu.product(x[:m], w) for m in (1, 20)}
    assert gpu.tune([(48, k)], BF16, (1, 20)) == tuning

    beyond = THIRD._replace(parallel=k > 256)
    stored = json.loads(tuning.read_text())
    assert stored["version"] == gpu_tuning.VERSION
    assert {"torch", "triton"} <= stored.keys()
    assert stored["configurations"] == {"bfloat16": {f"48x{k}": {"1": list(SECOND), "20": list(beyond)}}}
    assert [line.split()[:6] for line in capsys.readouterr().out.splitlines()] == [
        ["N", "48", "K", str(k), "M", str(m)] for m in (1, 20)
    ]
    assert list(tuning.parent.iterdir()) == [tuning]
    used = []

    def chosen(*arguments):
        used.append(gpu_tuning.lookup(*arguments))
        return used[-1]

    monkeypatch.setattr(gpu, "gpu_tuning", type("Told", (), {"lookup": staticmethod(chosen)}))
    for m, config in ((1, SECOND), (2, SECOND), (20, beyond)):
        assert_same_bits(gpu.product(x[:m], w), before[20][:m], f"{m} rows")
        assert used[-1] == config
    assert_same_bits(before[1], before[20][:1], "before")
    assert gpu_tuning.lookup(0, BF16, 4096, 48, k) == beyond


def test_other_shapes_stay_in_the_file(tuning):
    gpu.tune([(48, 256)], BF16, (1,))
    gpu.tune([(32, 256)], BF16, (1,))
    assert set(gpu_tuning.tuned(0)) == {("bfloat16", 48, 256), ("bfloat16", 32, 256)}


def test_a_file_that_cannot_be_used_is_written_anew(tuning, stored, capsys):
    for text, said in (("{", "cannot use"), (table(gpu_tuning.VERSION + 1, m1=FIRST), "are of version 3")):
        stored(text)
        gpu.tune([(48, 256)], BF16, (1,))
        assert said in capsys.readouterr().out.splitlines()[0]
        assert gpu_tuning.lookup(0, BF16, 1, 48, 256) == SECOND


def test_other_bits_stop_it_and_leave_the_file_as_it_was(tuning):
    gpu.tune([(48, 256)], BF16, (1,))
    before = tuning.read_text()

    def product(x, w, config=None):
        return gpu.product(x, w, config=config) + (config == THIRD)

    with pytest.raises(TuningError, match=r"other bits than the rest for \[1, 256\] x \[256, 32\]"):
        gpu_tuning.tune(product, [(32, 256)], BF16, (1,))
    assert tuning.read_text() == before


def test_a_file_is_whole_or_not_there(tuning, monkeypatch):
    gpu.tune([(48, 256)], BF16, (1,))
    before = tuning.read_text()

    def interrupted(self, text, **settings):
        with self.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.tune([(32, 256)], BF16, (1,))
    assert tuning.read_text() == before


def test_rows_that_no_descriptor_reads_are_not_tuned(tuning, capsys):
    gpu.tune([(48, 100)], BF16, (1,))
    assert "K   100: not tuned" in capsys.readouterr().out
    assert gpu_tuning.tuned(0) == {}


def test_the_command_line(tuning, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "product", lambda x, w, config=None: x @ w)
    assert main(["tune", "48x256", "--dtype", "float16"]) == 0
    assert f"stored in {tuning}" in capsys.readouterr().out
    assert gpu_tuning.lookup(0, torch.float16, 1, 48, 256) == SECOND

    def unproven(processor, dtype):
        raise TuningError.not_certified(100, "not followed")

    monkeypatch.setattr(gpu_tuning, "certified", unproven)
    assert main(["tune", "48x256"]) == 1
    assert capsys.readouterr().err.startswith("TuningError: nothing to tune on a device of capability 100")


def test_what_registers_hold_once_is_not_summed_twice():
    """The largest tiles have long sums in parallel, or none; Hopper was measured with them."""
    for capability in (90, 100):
        processor, found = gpu_configs.Processor(capability, 132, 232448), set()
        for m in (512, 4096, 65536):
            for k in (4104, 14336):
                config = gpu_configs.choose(processor, BF16, 1, m, 4096, k, True)
                found.add(config.one_sum and not config.parallel)
        assert found == {False} if capability == 100 else True in found
        assert gpu_configs.choose(processor, BF16, 1, 65536, 4096, 4096, True).one_sum
    tried = {c: gpu_tuning._forms([FIRST, LARGEST], 5000, BF16, c) for c in (90, 100)}
    assert set(tried[90]) - set(tried[100]) == {LARGEST}
