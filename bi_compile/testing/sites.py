"""Where an op of a random model may stand: shapes that know their batch, and names for the grammar."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rows:
    """The extent of the dimension that holds the batch: outer x batch x inner, in this order of memory."""

    outer: int = 1
    inner: int = 1


Shape = tuple[int | Rows, ...]
"""Every shape has exactly one dimension of `Rows`: each element belongs to one sample."""

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 65, 130, 257)
LARGEST = 4096
"""Elements that a sample may have in any value of a random model."""


class Misfit(Exception):
    """The op cannot stand at this site."""


@dataclass(frozen=True)
class Value:
    """An intermediate result: its name in the code, its shape and its dtype, such as "float32"."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Op:
    """One line of the grammar.

    code: an expression with the names in braces that a `Site` knows.
    becomes: the shape of its result.
    when: whether it can stand there at all.
    dtype: of its result; None for that of its operand.
    """

    name: str
    code: str
    becomes: Callable[["Site"], Shape] = lambda at: at.shape
    when: Callable[["Site"], bool] = lambda at: True
    dtype: str | None = None


@dataclass
class Weights:
    """The attributes of the module that is being written: name -> (what it is, its constructor)."""

    made: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, prefix: str, what: str, constructor: str, *, share: bool) -> str:
        """The name of an attribute of its own, or with `share` that of an earlier one of the same kind."""
        if share and (same := [name for name, (kind, _) in self.made.items() if kind == what]):
            return same[-1]
        name = f"{prefix}{sum(other.startswith(prefix) for other in self.made)}"
        self.made[name] = (what, constructor)
        return name


class Site:
    """A value, those before it, and the numbers that choose among an op's forms.

    numbers: choose, in this order: the dimension `d`, the dimension `e`, the size `n`, the small number `k`,
        the other operand `y`, and whether weights are shared.
    """

    def __init__(self, values: Sequence[Value], numbers: Sequence[int], weights: Weights) -> None:
        self.x = values[-1]
        self.values = values
        self.shape, self.dtype = self.x.shape, self.x.dtype
        self._weights = weights
        self._d, self._e, self._n, self._k, self._y, self._share = numbers

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def batch(self) -> int:
        """The dimension that holds the batch."""
        return next(d for d, extent in enumerate(self.shape) if isinstance(extent, Rows))

    @property
    def free(self) -> list[int]:
        """The dimensions that hold no batch."""
        return [d for d in range(self.rank) if d != self.batch]

    @property
    def d(self) -> int:
        return _chosen(self.free, self._d)

    @property
    def e(self) -> int:
        """Another free dimension, after `d`."""
        return _chosen([d for d in self.free if d > self.d], self._e)

    @property
    def any(self) -> int:
        """Any dimension."""
        return self._d % self.rank

    @property
    def other(self) -> int:
        """Any dimension but `any`."""
        return _chosen([d for d in range(self.rank) if d != self.any], self._e)

    @property
    def parts(self) -> tuple[int | Rows, int | Rows]:
        """Two extents into which dimension `any` falls apart."""
        extent = self.shape[self.any]
        if isinstance(extent, Rows):
            if extent.outer > 1:
                return extent.outer, Rows(1, extent.inner)
            if extent.inner > 1:
                return Rows(), extent.inner
            raise Misfit("the batch alone")
        factor = _chosen([f for f in (2, 3, 5, 7) if extent % f == 0 and extent > f], self._n)
        return factor, extent // factor

    @property
    def neighbour(self) -> int:
        """The first of two adjacent dimensions, or a misfit."""
        return _chosen(range(self.rank - 1), self._d)

    @property
    def n(self) -> int:
        return SIZES[self._n % len(SIZES)]

    @property
    def k(self) -> int:
        return 1 + self._k % 3

    @property
    def last(self) -> int:
        return self.extent(-1)

    @property
    def c(self) -> int:
        return self.extent(1)

    @property
    def size(self) -> int:
        return self.extent(self.d)

    def extent(self, d: int) -> int:
        """The extent of a dimension without batch."""
        extent = self.shape[d]
        if isinstance(extent, Rows):
            raise Misfit("the batch lies there")
        return extent

    @property
    def y(self) -> Value:
        """An earlier value of this dtype that can be broadcast with x."""
        fits = [v for v in self.values[:-1] if v.dtype == self.dtype and broadcast(v.shape, self.shape)]
        return _chosen(fits[::-1], self._y)

    def replaced(self, d: int, *extents: int | Rows) -> Shape:
        """The shape with other extents, or none, in place of dimension d."""
        d %= self.rank
        return (*self.shape[:d], *extents, *self.shape[d + 1 :])

    def write(self, code: str) -> str:
        """The code with its names filled in. `{w:n,last}` is a weight, `{m:nn.GRU(last, n)}` a module."""
        return re.sub(r"\{(\w+)(?::([^{}]*))?\}", self._filled, code)

    def _filled(self, found: re.Match[str]) -> str:
        name, form = found.groups()
        if name == "w":
            extents = [int(self._word(word)) for word in form.split(",")]
            fan = math.prod(extents[1:])
            shape = ", ".join(map(str, extents))
            scale = f" / {2 ** round(math.log2(fan) / 2)}" if fan > 2 else ""
            constructor = f"nn.Parameter((torch.randn({shape}){scale}).to(torch.{self.dtype}))"
            return "self." + self._weights.add("w", constructor, constructor, share=self._share % 2 == 1)
        if name == "m":
            called = re.sub(r"\b[a-z]+(?=[,)])", lambda word: self._word(word[0]), form)
            constructor = f"{called}.to(torch.{self.dtype})"
            return "self." + self._weights.add("m", constructor, constructor, share=self._share % 2 == 1)
        return self._word(name)

    def _word(self, word: str) -> str:
        if word.isdigit():
            return word
        value = getattr(self, word)
        if isinstance(value, tuple):
            value = tuple(-1 if isinstance(extent, Rows) else extent for extent in value)
        return value.name if isinstance(value, Value) else str(value)


def _chosen(options: Sequence, number: int):
    if not options:
        raise Misfit("nothing fits")
    return options[number % len(options)]


def elements(shape: Shape) -> int:
    """Elements of one sample."""
    return math.prod(extent.outer * extent.inner if isinstance(extent, Rows) else extent for extent in shape)


def broadcast(one: Shape, other: Shape) -> Shape | None:
    """The shape of a sum of both, or None where they do not fit or samples would meet."""
    rank = max(len(one), len(other))
    pairs = zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other, strict=True)
    shape: list[int | Rows] = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            return None
        shape.append(b if a == 1 else a)
    return tuple(shape) if sum(isinstance(extent, Rows) for extent in shape) == 1 else None


def merged(first: int | Rows, second: int | Rows) -> int | Rows:
    """The extent of two adjacent dimensions flattened into one."""
    if isinstance(first, Rows):
        assert isinstance(second, int)
        return Rows(first.outer, first.inner * second)
    if isinstance(second, Rows):
        return Rows(first * second.outer, second.inner)
    return first * second
