"""Sampling: a token knows its seed, stream, position and logits alone, and has the right distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.sampling import philox, sample

SETTINGS = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "all": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
}


def test_philox_known_answers():
    """Vectors of the authors' own tests (Random123, kat_vectors)."""
    for counter, key, expected in (
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ):
        words = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
        assert " ".join(f"{int(w):08x}" for w in words) == expected


@given(
    settings=st.sampled_from(sorted(SETTINGS)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    batch=st.sampled_from((1, 2, 3, 7, 16, 33)),
    vocabulary=st.sampled_from((1, 2, 5, 31, 97, 1000)),
    seed=st.integers(0, 2**31),
)
def test_a_row_draws_the_same_token_alone_and_in_any_batch(settings, dtype, batch, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(batch, vocabulary, generator=generator)).to(dtype)
    seeds = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    positions = torch.randint(0, 5000, (batch,), generator=generator)
    streams = torch.randint(0, 4, (batch,), generator=generator)
    together = sample(logits, seeds, positions, streams=streams, **SETTINGS[settings])
    for i in range(batch):
        at = slice(i, i + 1)
        alone = sample(logits[at], seeds[at], positions[at], streams=streams[at], **SETTINGS[settings])
        assert alone == together[i]


def test_the_stock_sampler_does_not():
    """The control: torch.multinomial draws for the whole batch."""
    chances = torch.rand(8, 50)
    together = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(3))
    alone = [torch.multinomial(row, 1, generator=torch.Generator().manual_seed(3)) for row in chances]
    assert not torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("settings", sorted(SETTINGS))
def test_frequencies_are_those_of_the_softmax(settings):
    """Pearson's statistic over 40,000 draws, by a rule that right code breaks once in a million times."""
    options = SETTINGS[settings]
    logits = 1.5 * torch.randn(30)
    count = 40_000
    drawn = sample(logits.expand(count, -1), torch.full((count,), 11), torch.arange(count), **options)
    chances = expected_chances(logits.double(), **options)
    assert (chances[drawn] > 0).all()
    possible = chances > 0
    wanted = count * chances[possible]
    found = torch.bincount(drawn, minlength=30)[possible]
    statistic = float(((found - wanted) ** 2 / wanted).sum())
    freedom = int(possible.sum()) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 20


def expected_chances(logits, temperature=1.0, top_k=None, top_p=None):
    chances = (logits / temperature).softmax(-1)
    ordered, order = chances.sort(descending=True, stable=True)
    if top_k is not None:
        ordered[top_k:] = 0
    ordered = ordered / ordered.sum()
    if top_p is not None:
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return torch.zeros_like(chances).scatter(0, order, ordered / ordered.sum())


def test_seeds_streams_and_positions_draw_apart():
    logits = torch.zeros(1, 1000)
    tokens = {
        (seed, stream, position): int(sample(logits, [seed], position, streams=stream))
        for seed in (0, 1, 2**40, -1)
        for stream in range(5)
        for position in range(5)
    }
    # A hundred draws of a thousand tokens: about 95 different ones.
    assert len(set(tokens.values())) > 80


def test_settings_of_each_row():
    logits = torch.randn(4, 50)
    seeds, positions = [1, 2, 3, 4], [5, 6, 7, 8]
    temperature = torch.tensor([0.0, 0.5, 1.0, 0.0])
    top_k, top_p = torch.tensor([50, 3, 1, 2]), torch.tensor([1.0, 0.5, 1.0, 0.3])
    together = sample(logits, seeds, positions, temperature=temperature, top_k=top_k, top_p=top_p)
    for i in range(4):
        options = {"temperature": float(temperature[i]), "top_k": int(top_k[i]), "top_p": float(top_p[i])}
        assert sample(logits[i : i + 1], seeds[i : i + 1], positions[i], **options) == together[i]
    assert together[0] == logits[0].argmax()
    assert together[2] == logits[2].argmax()


def test_masked_tokens_are_never_drawn():
    logits = torch.full((500, 20), -torch.inf)
    logits[:, [3, 17]] = 0.0
    drawn = sample(logits, torch.arange(500), 0, top_p=0.9)
    assert set(drawn.tolist()) == {3, 17}


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("temperature must be at least 0, got -1.0", {"temperature": -1.0}),
        ("top_k must be at least 1, got 0", {"top_k": 0}),
        ("top_p must be above 0 and at most 1, got 1.5", {"top_p": 1.5}),
        ("streams has 3 entries for 2 rows", {"streams": [1, 2, 3]}),
        ("positions must be at least 0", {"positions": -1}),
        ("positions must be integers, got 1.5", {"positions": 1.5}),
    ],
)
def test_bad_settings_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 4), [1, 2], options.pop("positions", 0), **options)


def test_seeds_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match=r"seeds must be integers, got 1\.5"):
        sample(torch.zeros(2, 4), [1.5, 2.0], 0)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_from_which_nothing_can_be_drawn_are_refused(value, temperature):
    logits = torch.zeros(3, 4)
    logits[2] = float(value)
    with pytest.raises(ValueError, match=f"largest logit of a row must be finite, got {value} in row 2"):
        sample(logits, [1, 2, 3], 0, temperature=temperature)
    assert sample(logits[:2], [1, 2], 0, temperature=temperature).shape == (2,)
