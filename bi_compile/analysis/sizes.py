"""Sizes as products of sympy factors."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch


@dataclass(frozen=True)
class Size:
    """number * factor**power * ...: a monomial. A sum that does not factor, such as s0 + 1, is one factor."""

    number: int = 1
    factors: tuple[tuple[sympy.Expr, int], ...] = ()

    @classmethod
    def of(cls, size: Any, same: "Same" = ()) -> "Size":
        """Of an int, a torch.SymInt or a sympy expression, with symbols replaced by those they equal."""
        if isinstance(size, torch.SymInt):
            size = size.node.expr
        if isinstance(size, int | sympy.Integer):
            return cls(int(size))
        return _factored(size.subs(list(same)) if same else size)

    def __mul__(self, other: "Size") -> "Size":
        powers = dict(self.factors)
        for factor, power in other.factors:
            powers[factor] = powers.get(factor, 0) + power
        return _monomial(self.number * other.number, powers)

    def over(self, other: "Size") -> "Size | None":
        """The quotient, or None where `other` is not known to divide."""
        if self.number == 0:
            return self
        if other.number == 0 or self.number % other.number:
            return None
        powers = dict(self.factors)
        for factor, power in other.factors:
            powers[factor] = powers.get(factor, 0) - power
            if powers[factor] < 0:
                return None
        return _monomial(self.number // other.number, powers)

    @property
    def symbols(self) -> set[sympy.Symbol]:
        return {symbol for factor, _ in self.factors for symbol in factor.free_symbols}  # type: ignore[misc]

    @property
    def symbol(self) -> sympy.Expr | None:
        """The size itself if it is one symbol."""
        single = self.number == 1 and len(self.factors) == 1 and self.factors[0][1] == 1
        return self.factors[0][0] if single and self.factors[0][0].is_Symbol else None

    def __str__(self) -> str:
        names = [str(factor) for factor, power in self.factors for _ in range(power)]
        return "*".join([str(self.number)] * (self.number != 1 or not names) + names)


Same = tuple[tuple[sympy.Expr, sympy.Expr], ...]
"""Pairs of a symbol and the one it is known to equal."""

ONE = Size()


def product(sizes: list[Size]) -> Size:
    result = ONE
    for size in sizes:
        result = result * size
    return result


def sizes_of(shape: Any, same: Same = ()) -> list[Size]:
    return [Size.of(size, same) for size in shape]


@lru_cache(maxsize=4096)
def _factored(expression: sympy.Expr) -> Size:
    expression = _without_floor(expression)
    number = 1
    powers: dict[sympy.Expr, int] = {}
    product: Any = sympy.factor(expression)
    for factor, power in product.as_powers_dict().items():
        if factor.is_Integer and int(power) > 0:
            number *= int(factor) ** int(power)
        elif factor.is_Integer or not power.is_Integer or int(power) < 0:
            return Size(1, ((expression, 1),))
        else:
            powers[factor] = int(power)
    return _monomial(number, powers)


def _without_floor(expression: sympy.Expr) -> sympy.Expr:
    """(2*s0 + 1)//2, the size of a chunk, is s0: no polynomial, but as good as one."""
    symbols: list[Any] = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1 or not expression.atoms(sympy.Function):
        return expression
    points = (5, 6, 7, 11, 16)
    try:
        values = [(point, int(expression.subs(symbols[0], point))) for point in points]  # type: ignore[arg-type]
    except ZeroDivisionError:  # s0//(s0//6) has no value at 5: it is no multiple of s0
        return expression
    times = values[0][1] // points[0]
    return times * symbols[0] if all(value == times * point for point, value in values) else expression


def _monomial(number: int, powers: dict[sympy.Expr, int]) -> Size:
    kept = [(factor, power) for factor, power in powers.items() if power]
    return Size(number, tuple(sorted(kept, key=lambda item: str(item[0]))))
