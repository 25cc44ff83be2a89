"""Tiles of attention that met something infinite are done again, by any number of programs."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.chain import chain
from tests.interpreted.interpreter import tl
from tests.interpreted.test_attention import BF16, FP32, INF, check, inputs

triton = pytest.importorskip("triton")

from bi_compile.templates.attention import gpu  # noqa: E402
from bi_compile.templates.attention.gpu_places import last_step  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _chains():
    interpreter.use_dot(chain)


# One step each is what the tests of few tiles elsewhere have.
@pytest.mark.parametrize("programs", [3, pytest.param(10**6, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("dtype", "value_size", "kind"),
    [
        (BF16, 8, "causal"),
        (BF16, 130, "causal"),
        (FP32, 8, "causal"),
        (BF16, 8, "boolean"),
        (FP32, 8, "added"),
    ],
    ids=str,
)
def test_any_number_of_programs_does_all(dtype, value_size, kind, programs, monkeypatch):
    """The last key alone is infinite: times its weight of 0 it is NaN in all other rows of the block."""
    shared = []
    monkeypatch.setattr(gpu, "careful_programs", lambda *a: shared.append(a[0]) or min(a[0], programs))
    q, k, v = inputs(1, 4, 2, 37, 37, 8, value_size, dtype)
    mask = None if kind == "causal" else torch.ones(1, 1, 37, 37, dtype=torch.bool).tril()
    if kind == "added":
        mask = torch.where(mask, 0.0, -INF)
    expected = check(q, k, v, mask, kind == "causal")
    # In one kv head, then in both.
    for kv_head in (1, 0):
        v[:, kv_head, -1, 3] = INF
        expected[:, 2 * kv_head : 2 * kv_head + 2, -1, 3] = INF
        found, _ = gpu.attention(q, k, v, mask, kind == "causal", 0.3)
        assert_same_bits(found.contiguous(), expected.contiguous(), f"head {kv_head}")
    assert shared[0] > 2 * 3
    assert len(shared) == 3


@triton.jit
def _last_steps(found, flags, programs, STEPS_OF_TILE: tl.constexpr):
    tl.store(found + tl.program_id(0), last_step(flags, programs, STEPS_OF_TILE))


@pytest.mark.parametrize(("tiles", "programs", "steps"), [(1, 1, 1), (5, 40, 8), (700, 3, 1), (300, 7, 6)])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5])
def test_the_last_step_of_each_program(tiles, programs, steps, part):
    """Where there are more than it reads together, or fewer than programs."""
    g = torch.Generator().manual_seed(0)
    flags = (torch.rand(tiles + 1000, generator=g) < part).int() * 2 + torch.randint(
        2, (tiles + 1000,), generator=g
    )
    # Behind the last tile nothing counts.
    flags[tiles:] = 3
    found = torch.full((programs,), -7, dtype=torch.int32)
    _last_steps[(programs,)](found, flags.int(), tiles, STEPS_OF_TILE=steps)
    of_steps = flags[:tiles].repeat_interleave(steps) >= 2
    expected = [
        max((s for s in range(p, len(of_steps), programs) if of_steps[s]), default=-1)
        for p in range(programs)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("processors", [1, 47, 108, 128, 132])
def test_programs(processors):
    """An odd number, so that steps which recur by powers of two are dealt out to all."""
    programs = gpu.careful_programs(10**5, processors)
    assert 0.99 * processors - 1 <= programs <= processors
    assert len({step % programs for step in range(0, 10**5, 2**5)}) == programs
    assert gpu.careful_programs(1, processors) == 1
