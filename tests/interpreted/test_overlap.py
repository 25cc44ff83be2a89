"""Which launches overlap the one before them, on a device and driver that are made up."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from tests.interpreted import interpreter as _  # noqa: F401

from bi_compile.templates.gpu import device, overlap  # isort: skip
from bi_compile.templates.gpu.launch import Launch  # isort: skip

HERE = torch.device("cuda", 0)
OVERLAPS = {"OVERLAP": True, "launch_pdl": True}


@pytest.fixture(autouse=True)
def asked_anew():
    device.driver_version.cache_clear()
    yield
    device.driver_version.cache_clear()


def pretend(monkeypatch, capability: int, driver: int, status: int = 0) -> list[str]:
    """A device, and a library that tells its version as CUDA does; the result lists what is loaded."""
    loaded = []

    def get_version(address) -> int:
        address._obj.value = driver
        return status

    def load(name: str):
        loaded.append(name)
        return SimpleNamespace(cuDriverGetVersion=get_version)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(overlap, "processor", lambda index: device.Processor(capability, 132, 232448))
    return loaded


class Kernel:
    """Takes what it is launched with."""

    def __init__(self, *names: str):
        self.arg_names = names
        self.launched: list[dict] = []

    def __getitem__(self, grid):
        return lambda *tensors, **arguments: self.launched.append(arguments)


@pytest.mark.parametrize(
    ("capability", "driver", "overlaps"),
    [(90, 12030, True), (90, 13000, True), (90, 12020, False), (90, 11080, False), (89, 12080, False)],
)
def test_the_device_and_its_driver_decide(monkeypatch, capability, driver, overlaps):
    pretend(monkeypatch, capability, driver)
    tensor = SimpleNamespace(device=HERE, data_ptr=lambda: 8)
    takes_part, does_not = Kernel("x", "OVERLAP"), Kernel("x")
    Launch(takes_part, (1,), {"N": 3})(tensor)
    Launch(does_not, (1,), {"N": 3})(tensor)
    assert takes_part.launched == [{"N": 3, **(OVERLAPS if overlaps else {"OVERLAP": False})}]
    assert does_not.launched == [{"N": 3}]


def test_the_version_is_read_once(monkeypatch):
    loaded = pretend(monkeypatch, 90, 12040)
    assert device.driver_version() == (12, 4)
    assert overlap.able(HERE)
    assert len(loaded) == 1


def test_a_driver_that_does_not_answer_is_none(monkeypatch):
    pretend(monkeypatch, 90, 12040, status=100)
    assert device.driver_version() == (0, 0)
    assert not overlap.able(HERE)


def test_no_driver_and_no_device(monkeypatch):
    loaded = pretend(monkeypatch, 90, 12040)
    assert not overlap.able(torch.device("cpu"))
    assert not loaded

    def missing(name: str):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert device.driver_version() == (0, 0)
