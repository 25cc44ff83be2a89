"""Models that share a graph are judged as by themselves; the campaign counts them and goes on."""

import multiprocessing
import os
import random
import signal
import threading
import time

import torch

from bi_compile.testing import campaign, together
from bi_compile.testing.messages import BatchVarianceError
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.subjects import Outcome
from bi_compile.testing.telling import telling
from bi_compile.testing.together import check_together

ZEROS = (0,) * 6
WIDE = RandomModel((301,), (("linear", (0, 0, 9, 0, 0, 0)), ("tanh", ZEROS)), seed=1)
PLAIN = RandomModel((5,), (("mul", ZEROS), ("softmax", ZEROS)))
REFUSED = RandomModel((3,), (("bessel", ZEROS),))
VACUOUS = RandomModel((3,), (("one_hot", ZEROS), ("amax", (1, *ZEROS[1:]))))
INVALID = RandomModel((3,), (("heaviside", ZEROS),))


def counted(monkeypatch) -> list[int]:
    """How many models each compiled graph held."""
    sizes = []
    results = together._results

    def counting(subjects, *rest):
        sizes.append(len(subjects))
        return results(subjects, *rest)

    monkeypatch.setattr(together, "_results", counting)
    return sizes


def test_models_share_one_graph(monkeypatch):
    sizes = counted(monkeypatch)
    found = check_together([WIDE, VACUOUS, PLAIN])
    assert found == [Outcome("same"), Outcome("vacuous"), Outcome("same")]
    assert sizes == [3]


def test_a_refusal_and_gradients_are_those_of_single_models():
    refused, same, invalid = check_together([REFUSED, PLAIN, INVALID], gradients=True)
    assert isinstance(refused, Outcome)
    assert refused.what == "refused"
    assert same == Outcome("same")
    assert isinstance(invalid, Outcome)
    assert invalid.what == "invalid"


def test_what_a_graph_cannot_hold_is_found_by_halves(monkeypatch):
    sizes = counted(monkeypatch)
    run = together._results

    def fussy(subjects, *rest):
        if any(subject.model == WIDE for subject in subjects):
            raise RuntimeError("this graph does not compile")
        return run(subjects, *rest)

    monkeypatch.setattr(together, "_results", fussy)
    monkeypatch.setattr(together, "check_model", lambda model, **how: Outcome("refused", model.source[:5]))
    found = check_together([PLAIN, WIDE, VACUOUS, PLAIN])
    assert [outcome.what for outcome in found] == ["refused", "refused", "vacuous", "same"]
    assert sizes == [2]


def test_the_control_fails_in_a_shared_graph_and_comes_with_its_program(monkeypatch):
    """Stock PyTorch in place of a compiler."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    failed, same = check_together([WIDE, RandomModel((3,), (("neg", ZEROS),))], backend="stock")
    assert isinstance(failed, BatchVarianceError)
    (script,) = failed.__notes__
    assert repr(WIDE) in script
    assert same == Outcome("same")


def test_a_failure_that_needs_company_names_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(together, "check_model", lambda model, **how: Outcome("same"))
    failed, _ = check_together([WIDE, PLAIN], backend="stock")
    assert isinstance(failed, BatchVarianceError)
    assert f"[\n    {WIDE!r},\n    {PLAIN!r},\n]" in failed.__notes__[0]


def test_steps_after_which_samples_agree_are_left_out():
    steps = [(name, ZEROS) for name in ("mul", "trunc", "gelu", "add", "one_hot", "amax")]
    model = telling(RandomModel.fitting((9,), steps, kind="subnormal"))
    # trunc makes all of them 0, an addition of 0.3 swallows them, and one_hot sees but zeros.
    assert [name for name, _ in model.steps] == ["mul", "gelu", "amax"]
    assert telling(model) == model
    drawn = [telling(RandomModel.drawn(random.Random(f"telling {i}"))) for i in range(20)]
    assert sum(bool(model.steps) for model in drawn) >= 15


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path, capsys):
    start = ["--backend", "canonical", "--steps", "2", "--jobs", "0", "--folder", str(tmp_path)]
    assert campaign.main([*start, "--models", "5"]) == 0
    (results,) = tmp_path.glob("*.jsonl")
    first = results.read_text()
    assert "5 models: " in capsys.readouterr().out
    results.write_text(first.replace('"number": 3', '"number": 30'))  # as if it had ended within number 3
    assert campaign.main([*start, "--models", "6"]) == 0
    assert results.read_text().count('{"alone": 3}') == 1
    assert "6 models: " in capsys.readouterr().out
    assert not list(tmp_path.glob("test_*.py")), "nothing failed"


def test_a_campaign_of_decoders(tmp_path, capsys):
    start = ["--folder", str(tmp_path), "--jobs", "0", "--shrink", "9", "--decoders", "2", "--backend"]
    assert campaign.main([*start, "canonical"]) == 0
    assert capsys.readouterr().out.startswith("2 decoders: 2 same\n  2 of 12 families")
    assert campaign.main([*start, "eager"]) == 1
    assert "2 decoders: 2 failed" in capsys.readouterr().out
    (script, _) = sorted(tmp_path.glob("test_eager_0_decoder_*.py"))
    assert "layers=1" in script.read_text()


def test_a_campaign_that_is_told_to_stop_leaves_nothing_behind(tmp_path, monkeypatch):
    compiled = tmp_path / "inductor-0" / "code"

    def work(*_):
        compiled.mkdir(parents=True)
        time.sleep(60)

    def stop():
        while not compiled.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(campaign, "_work", work)
    monkeypatch.setattr(campaign, "get_context", lambda _: multiprocessing.get_context("fork"))
    thread = threading.Thread(target=stop)
    thread.start()
    start = time.monotonic()
    assert campaign.main(["--models", "1", "--folder", str(tmp_path)]) == 128 + signal.SIGTERM
    thread.join()
    assert time.monotonic() - start < 30
    assert not list(tmp_path.iterdir())
