"""Arguments that cannot be meant are told by their names, before anything runs."""

from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any


def require_integer(name: str, value: Any, *, least: int | None = None) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def require_integers(name: str, values: Any, *, least: int | None = None) -> None:
    require_sequence(name, values)
    for place, value in enumerate(values):
        require_integer(f"{name}[{place}]", value, least=least)


def require_numbers(name: str, values: Any) -> None:
    require_sequence(name, values)
    for place, value in enumerate(values):
        require_number(f"{name}[{place}]", value)


def require_number(name: str, value: Any, *, least: float | None = None) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if least is not None and not least <= float(value) < float("inf"):
        raise ValueError(f"{name} must be finite and at least {least}, not {value}")


def require_sequence(name: str, values: Any) -> None:
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence such as a tuple, not {values!r}")


def require_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")


def require_one_of(name: str, value: Any, known: Collection[Any]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")


def require_dim(name: str, dim: int, rank: int) -> None:
    """dim is one of a tensor of that rank."""
    if not -rank <= dim < rank:
        raise ValueError(f"{name} is {dim}, but the tensor has {rank} dimension{'s' * (rank != 1)}")
