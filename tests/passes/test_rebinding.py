"""A rebound function is the same code with other globals."""

from bi_compile.passes.rebinding import rebound

factor = 2


def times(x: int, more: int = 1, *, other: int = 0) -> int:
    return x * factor + more + other


def test_only_the_named_globals_are_others():
    thrice = rebound(times, {"factor": 3})
    assert (thrice(5), thrice(5, other=4), times(5)) == (16, 20, 11)
