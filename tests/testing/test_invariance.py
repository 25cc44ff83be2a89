"""Meta-tests: `assert_batch_invariant` passes what is invariant and fails every planted defect."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.testing import (
    BatchVarianceError,
    InaccurateResultError,
    Pad,
    VacuousCheckError,
    assert_batch_invariant,
    bisect,
)
from tests.bits import order_sensitive
from tests.testing.conftest import FEATURES

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_row(fn):
    """The simplest invariant version of any function: one sample at a time.

    Each is copied, because MKL's bits also depend on where in memory a row starts.
    """
    return lambda x: torch.cat([fn(row.unsqueeze(0).clone()) for row in x])


def test_passes_an_invariant_function_and_says_what_it_did(model, samples):
    report = assert_batch_invariant(by_row(model), samples, control=model, reference=model)

    assert report.samples == 9
    assert report.sizes == (1, 2, 3, 4, 7, 8, 16, 33)
    assert report.batches == 8 * 2 + 7 * 4
    assert report.rows > 200
    assert report.elements == report.rows * 19
    assert report.control is not None
    assert "changes with the batch" in report.control
    assert report.accuracy is not None
    assert report.accuracy.errors == report.accuracy.stock_errors


def test_fails_stock_matmul(model, samples):
    with pytest.raises(BatchVarianceError, match="changes with the batch"):
        assert_batch_invariant(model, samples)


DEFECTS = {
    "a little of everybody": lambda x, y: y + x.mean(0).mean() * 1e-7,
    "a look at the batch size": lambda x, y: y * (1.0 if len(x) != 33 else 1.0 + 2**-20),
    "a look at the position": lambda x, y: torch.cat([y[:15], y[15:] + 2**-10]),
    "a neighbour's NaN through a zero": lambda x, y: y + 0 * x.sum(),
    "the last row of odd batches": lambda x, y: torch.cat([y[:-1], y[-1:] * (1 + len(x) % 2 * (len(x) > 1))]),
    "the sign of zero": lambda x, y: torch.cat([y, y[:, :1] * (0.0 if len(x) < 4 else -0.0)], 1),
    "another dtype": lambda x, y: y if len(x) < 8 else y.double(),
    "another shape": lambda x, y: y if len(x) < 8 else y[:, :-1],
    "a missing row": lambda x, y: y if len(x) < 16 else y[:-1],
    "sorted rows": lambda x, y: y[y[:, 0].argsort()],
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_catches_a_planted_defect(defect, model, samples):
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(lambda x: DEFECTS[defect](x, by_row(model)(x)), samples)


def test_catches_a_dropped_bias_only_with_a_reference(model, samples):
    biasless = by_row(lambda x: torch.nn.functional.linear(x, model.weight))
    small = samples / 1024
    assert_batch_invariant(biasless, small)
    with pytest.raises(InaccurateResultError, match="farther from the float64 reference than stock"):
        assert_batch_invariant(biasless, small, reference=model)


def test_catches_a_result_that_is_overwritten_by_the_next_call(samples):
    """Outputs are copied at once, so a reused buffer cannot hide (or fake) a difference."""
    buffer = torch.empty(64, FEATURES)

    def reuse(x):
        buffer[: len(x)] = x * 2
        return buffer[: len(x)]

    assert_batch_invariant(reuse, samples)


def test_the_message_names_everything(model, samples):
    def planted(x):
        y = by_row(model)(x).detach().clone()
        if len(x) == 7:
            y[2, 5] = torch.nextafter(y[2, 5], torch.tensor(torch.inf))
        return {"logits": y}

    with pytest.raises(BatchVarianceError) as failure:
        assert_batch_invariant(planted, samples, seed=3)
    first, where, who, what, how_many, hint = str(failure.value).splitlines()
    assert first.startswith("output['logits'] of sample ")
    assert where == "  batch of 7 (trial 0), the sample at position 2"
    assert who.startswith("  plain neighbours: samples ")
    assert what.startswith("  first difference at [0, 5]: alone ")
    assert what.endswith("(1 ulp apart)")
    assert how_many == (
        "  1 of the 7 rows compared differ in this batch, in 1 of 133 elements, by at most 1 ulps"
    )
    assert hint == "Hint: this batch is drawn again by seed=3, sizes=(7,)."

    with pytest.raises(BatchVarianceError) as again:
        assert_batch_invariant(planted, samples, seed=3, sizes=(7,))
    assert str(again.value) == str(failure.value)


def test_the_message_names_hostile_neighbours(samples):
    with pytest.raises(
        BatchVarianceError, match="hostile neighbours: their floating-point inputs are all inf"
    ):
        assert_batch_invariant(lambda x: x + 0 * x.sum(), samples, neighbours=(float("inf"),), trials=0)


class TestRefusesToPassVacuously:
    def test_control_that_passes(self, model, samples):
        with pytest.raises(VacuousCheckError, match="the control passes the same check"):
            assert_batch_invariant(by_row(model), samples, control=by_row(model))

    def test_one_sample(self, model, samples):
        with pytest.raises(VacuousCheckError, match="the pool holds 1 sample"):
            assert_batch_invariant(model, samples[:1])

    def test_no_batched_input(self, model, samples):
        with pytest.raises(VacuousCheckError, match="no input has a batch dimension"):
            assert_batch_invariant(model, samples, batch_dims=(None,))

    def test_batches_of_one_only(self, model, samples):
        with pytest.raises(VacuousCheckError, match="no batch size above 1"):
            assert_batch_invariant(model, samples, sizes=(1,))

    def test_no_batch_is_drawn(self, model, samples):
        for fn in (model, lambda x: x * 2):
            with pytest.raises(VacuousCheckError, match="trials is 0, and neighbours is empty"):
                assert_batch_invariant(fn, samples, trials=0, neighbours=())
        with pytest.raises(VacuousCheckError, match="trials is 0, and no input is floating-point"):
            assert_batch_invariant(lambda i: i / 3, torch.arange(9).reshape(3, 3), trials=0)

    def test_a_control_that_shows_nothing_itself(self, samples):
        with pytest.raises(VacuousCheckError, match="of the control: all 9 samples give the same output"):
            assert_batch_invariant(lambda x: x * 2, samples, control=torch.zeros_like)

    def test_a_reference_that_is_nowhere_finite(self, samples):
        with pytest.raises(VacuousCheckError, match="no output could be compared with the reference"):
            assert_batch_invariant(lambda x: x * 2, samples, reference=lambda x: x * torch.inf * 0)

    def test_integers_only(self, model, samples):
        with pytest.raises(VacuousCheckError, match="no output is floating-point"):
            assert_batch_invariant(lambda x: model(x).argmax(-1), samples)

    def test_no_output(self, samples):
        with pytest.raises(VacuousCheckError, match="no tensor at all"):
            assert_batch_invariant(lambda x: 3.0, samples)

    def test_constant_output(self, samples):
        with pytest.raises(VacuousCheckError, match="all 9 samples give the same output"):
            assert_batch_invariant(lambda x: torch.ones(len(x), 3), samples)

    def test_output_of_the_whole_batch(self, samples):
        with pytest.raises(VacuousCheckError, match="output has no dimension that grows with the batch"):
            assert_batch_invariant(lambda x: x.mean(), samples)

    def test_batch_dimension_ignored(self, samples):
        with pytest.raises(VacuousCheckError, match="no dimension that grows"):
            assert_batch_invariant(lambda x: x[:1] * 2, samples)


class Named(NamedTuple):
    hidden: torch.Tensor
    pooled: torch.Tensor


@dataclass
class Record:
    hidden: torch.Tensor
    steps: int


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda y: (y * 1, y), "output[1]"),
        (lambda y: {"a": [y * 1, {"b": y}]}, "output['a'][1]['b']"),
        (lambda y: Named(y * 1, y), "output.pooled"),
        (lambda y: Record(y, 3), "output.hidden"),
    ],
)
def test_nested_outputs_are_compared_leaf_by_leaf(wrap, path, samples):
    def planted(x):
        y = x.clone()
        y[:, 0] += 0.0 if len(x) < 3 else 1.0
        tree = wrap(y)
        # Only the last leaf keeps the defect: all others were copied by `* 1` and are mended here.
        for leaf in (
            [tree[0]] if isinstance(tree, tuple) else [tree["a"][0]] if isinstance(tree, dict) else []
        ):
            leaf[:, 0] = x[:, 0]
        return tree

    with pytest.raises(BatchVarianceError) as failure:
        assert_batch_invariant(planted, samples, neighbours=())
    assert str(failure.value).startswith(f"{path} of sample")


def test_batch_dimensions_per_input_nested_inputs_and_passed_through_values(model):
    x, mask = order_sensitive(5, 6, FEATURES), torch.rand(6, 5) < 0.7

    def fn(batch, weight, scale, name):
        assert name == "n"
        y = [
            torch.nn.functional.linear(batch["x"][:, i : i + 1].clone(), weight[:1])
            for i in range(batch["x"].shape[1])
        ]
        return torch.cat(y, 1) * scale * batch["mask"].unsqueeze(-1)

    batch = {"x": x, "mask": mask.T}
    report = assert_batch_invariant(fn, batch, model.weight, 2.0, "n", batch_dims=(1, None, None, None))
    assert report.samples == 6


def test_flattened_rows_follow_the_batch_too(samples):
    x = samples[:8].reshape(4, 2, FEATURES)
    assert_batch_invariant(lambda x: (x * 2).reshape(-1, FEATURES), x)
    with pytest.raises(BatchVarianceError):
        assert_batch_invariant(lambda x: (x * 2).transpose(0, 1).reshape(-1, FEATURES), x)


class TestPadding:
    lengths = (3, 5, 4, 1, 7, 6)

    def attend(self, x, mask):
        """A per-sample masked mean and the hidden states."""
        weight = mask.unsqueeze(-1).to(x.dtype)
        hidden = x * 2 + 1
        return {
            "hidden": hidden,
            "mean": (x * weight).double().sum(1).to(x.dtype),
            "pair": hidden @ hidden.mT,
        }

    def pool(self):
        x = torch.randn(6, 7, 4)
        mask = torch.arange(7) < torch.tensor(self.lengths).unsqueeze(1)
        return x, mask

    def run(self, fn, **kwargs):
        pad = Pad(lengths=self.lengths, **kwargs)
        return assert_batch_invariant(fn, *self.pool(), padding=pad, neighbours=())

    def by_pair(self, x, mask):
        """`attend` whose last output is computed without a matmul that could see the batch."""
        out = self.attend(x, mask)
        out["pair"] = out["hidden"].sum(-1).unsqueeze(1) + out["hidden"].sum(-1).unsqueeze(2)
        return out

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_passes_what_ignores_its_padding(self, side):
        x, mask = self.pool()
        pad = Pad(lengths=self.lengths, fill=(7.0, 0), side=side)
        mask = mask.flip(1) if side == "left" else mask
        report = assert_batch_invariant(self.by_pair, x, mask, padding=pad, neighbours=())
        assert report.rows == 3 * sum(size * 2 for size in report.sizes)

    def test_garbage_under_the_mask_leaks(self):
        with pytest.raises(BatchVarianceError, match="all padded to length") as failure:
            self.run(self.by_pair, fill=(float("nan"), 0))
        assert "output['mean']" in str(failure.value)

    def test_catches_what_counts_its_padding(self):
        with pytest.raises(BatchVarianceError, match="all padded to length"):
            self.run(lambda x, mask: x.double().mean(1), fill=(1.0, 0))

    @pytest.mark.parametrize(
        ("pad", "message"),
        [
            ({"lengths": (1, 2)}, "padding has 2 lengths for 6 samples"),
            ({"dim": 7}, "dim of padding for input 0 is 7, but the tensor has 3 dimensions"),
            ({"dim": 0}, "dim of padding for input 0 is 0, which is its batch dimension"),
            ({"dim": (1,)}, "dim of padding has 1 entries for 2 inputs"),
            ({"dim": None}, "dim=None of padding leaves no input to pad"),
            ({"fill": (0.0,)}, "fill of padding has 1 entries for 2 inputs"),
            ({"lengths": (9,) * 6}, "padding has a length of 9, but input 0 is 7 long"),
        ],
    )
    def test_the_pool_and_its_padding_must_fit(self, pad, message):
        with pytest.raises(ValueError, match=message):
            assert_batch_invariant(
                self.by_pair, *self.pool(), padding=Pad(**{"lengths": self.lengths, **pad})
            )

    @pytest.mark.parametrize(
        ("pad", "error", "message"),
        [
            ({"side": "up"}, ValueError, "side must be one of 'right', 'left', not 'up'"),
            ({"lengths": (3, 0)}, ValueError, r"lengths\[1\] must be at least 1, not 0"),
            ({"lengths": 3}, TypeError, "lengths must be a sequence such as a tuple, not 3"),
            ({"dim": 1.5}, TypeError, "dim must be an integer, not 1.5"),
            ({"fill": "0"}, TypeError, "fill must be a sequence such as a tuple, not '0'"),
        ],
    )
    def test_a_pad_that_cannot_be_meant(self, pad, error, message):
        with pytest.raises(error, match=message):
            Pad(**{"lengths": (3, 5), **pad})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_dims": 5}, ValueError, "batch_dims of input 0 is 5, but the tensor has 2 dimensions"),
        ({"batch_dims": "0"}, TypeError, "batch_dims must be a sequence"),
        ({"batch_dims": (0, 1)}, ValueError, "batch_dims has 2 entries for 1 inputs"),
        ({"sizes": 3}, TypeError, "sizes must be a sequence such as a tuple, not 3"),
        ({"sizes": (2, -1)}, ValueError, r"sizes\[1\] must be at least 1, not -1"),
        ({"trials": -1}, ValueError, "trials must be at least 0, not -1"),
        ({"neighbours": 3.0}, TypeError, "neighbours must be a sequence"),
        ({"padding": (3,)}, TypeError, r"padding must be a Pad such as Pad\(lengths=\(3, 5\)\), not \(3,\)"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, not 0.5"),
        ({"tolerance": -1}, ValueError, "tolerance must be finite and at least 0, not -1"),
        ({"control": 3}, TypeError, "control must be callable, not 3"),
        ({"reference": 3}, TypeError, "reference must be callable, not 3"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told_by_name(arguments, error, message, samples):
    with pytest.raises(error, match=message):
        assert_batch_invariant(lambda x: x * 2, samples, **arguments)


def test_inputs_given_as_one_container_are_told(model, samples):
    for fn, inputs in (
        (model, (samples,)),
        (lambda x, y: x + y, [samples, samples]),
        (model, {"input": samples}),
    ):
        with pytest.raises(
            TypeError, match=rf"fn was given one {type(inputs).__name__} as its only argument"
        ):
            assert_batch_invariant(fn, inputs)
        with pytest.raises(TypeError, match="Inputs are passed one by one"):
            bisect(fn, inputs)


@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    samples=st.integers(2, 6),
    features=st.integers(1, 9),
    victim=st.integers(2, 8),
    seed=st.integers(0, 2**32),
)
def test_any_single_flipped_bit_is_found(dtype, samples, features, victim, seed):
    """Whatever the dtype and sizes: one last bit, in one element, at one batch size, fails the check."""
    x = torch.randn(samples, features).to(dtype)
    x[:, 0] = torch.arange(1, samples + 1)

    def planted(x):
        if len(x) != victim:
            return x
        y = x.clone()
        y.view(INTEGERS[dtype.itemsize])[victim - 1, features - 1] ^= 1
        return y

    assert_batch_invariant(lambda x: x, x, seed=seed)
    with pytest.raises(BatchVarianceError, match=f"batch of {victim} "):
        assert_batch_invariant(planted, x, sizes=(1, victim, 9), seed=seed)


def test_catches_one_wrong_element_that_the_mean_would_hide():
    weight = torch.randn(64, 4096)

    def exact(x):
        return x @ weight.to(x.dtype)

    def wrong(x):
        out = torch.stack([row @ weight for row in x])
        return torch.cat([out[:, :-1], out[:, -1:] * (1 + 2e-5)], 1)

    with pytest.raises(InaccurateResultError, match="single elements of output are far"):
        assert_batch_invariant(wrong, torch.randn(6, 64), reference=exact, sizes=(1, 2), neighbours=())
