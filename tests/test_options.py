"""Options: unknown keys and values are refused with the nearest valid one, Inductor's pass through."""

import pytest
import torch

from bi_compile.errors import OptionError
from bi_compile.options import Options


def test_defaults():
    assert Options.parse(None) == Options(on_unsupported="error", dump=None, inductor={})


def test_a_misspelt_key_gets_the_nearest():
    with pytest.raises(
        OptionError, match="unknown option 'on_unsuported'\nHint: did you mean 'on_unsupported'"
    ):
        Options.parse({"on_unsuported": "warn"})


def test_a_misspelt_value_gets_the_nearest():
    with pytest.raises(OptionError, match="'on_unsupported' cannot be 'wran'\nHint: did you mean 'warn'"):
        Options.parse({"on_unsupported": "wran"})


def test_inductor_options_pass_through():
    assert Options.parse({"epilogue_fusion": True}).inductor == {"epilogue_fusion": True}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("emulate_precision_casts", False),
        ("cpp.enable_floating_point_contract_flag", "fast"),
        ("cpp.enable_unsafe_math_opt_flag", True),
        ("post_grad_custom_post_pass", print),
    ],
)
def test_inductor_options_that_break_the_promise_are_refused_by_name(key, value):
    with pytest.raises(OptionError, match=f"Inductor option '{key}'"):
        Options.parse({key: value})


def test_a_refused_option_may_be_given_its_pinned_value():
    assert Options.parse({"emulate_precision_casts": True}).inductor


def test_environment_variables_stand_below_explicit_options(monkeypatch):
    monkeypatch.setenv("BI_COMPILE_ON_UNSUPPORTED", "warn")
    assert Options.parse(None).on_unsupported == "warn"
    assert Options.parse({"on_unsupported": "ignore"}).on_unsupported == "ignore"
    monkeypatch.setenv("BI_COMPILE_ON_UNSUPPORTED", "nonsense")
    with pytest.raises(OptionError, match="cannot be 'nonsense'"):
        Options.parse(None)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        (True, "bi_compile_dump"),
        ("1", "bi_compile_dump"),
        (False, None),
        ("0", None),
        (None, None),
        ("x", "x"),
    ],
)
def test_dump_is_a_folder_or_a_switch(given, folder, monkeypatch):
    assert Options.parse({"dump": given}).dump == folder
    if isinstance(given, str):
        monkeypatch.setenv("BI_COMPILE_DUMP", given)
        assert Options.parse(None).dump == folder


def test_the_first_line_stands_alone_inside_dynamos_wrapping():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x + 1, backend="batch_invariant", options={"dmup": "x"})
    with pytest.raises(Exception, match="OptionError: unknown option 'dmup'"):
        compiled(torch.ones(2))


def test_caches_see_options_of_inductor():
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_inductor_cache

    def hits_and_misses(**options):
        torch.compiler.reset()
        counters.clear()
        torch.compile(lambda x: (x * 3.25).exp().sum(-1), backend="batch_invariant", options=options)(x)
        found = counters["aot_autograd"]
        return found["autograd_cache_hit"], found["autograd_cache_miss"]

    x = torch.ones(4, 6)
    with fresh_inductor_cache():
        assert hits_and_misses() == (0, 1)
        assert hits_and_misses(epilogue_fusion=False) == (0, 1)
        assert hits_and_misses(epilogue_fusion=False) == (1, 0)
        assert hits_and_misses() == (1, 0)
