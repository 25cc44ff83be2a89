"""Which elements of the input meet which taps, one spatial dimension at a time."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Side(NamedTuple):
    """Every out_step-th output from out_first.

    Number j takes in the elements j * stride + first + i * dilation; these meet the taps
    tap_first + i * tap_step of the kernel, i = 0 .. taps-1.
    """

    size: int
    """Elements of the input."""
    outputs: int
    """Numbers j."""
    out_size: int
    """All elements of the output."""
    taps: int
    stride: int
    dilation: int
    first: int
    out_first: int = 0
    out_step: int = 1
    tap_first: int = 0
    tap_step: int = 1

    @property
    def met(self) -> slice:
        """The taps, in the kernel."""
        return slice(self.tap_first, self.tap_first + self.taps * self.tap_step, self.tap_step)

    def reach(self) -> tuple[int, int]:
        """The first and the last element that a window takes in; without windows those of the input."""
        if self.outputs * self.taps == 0:
            return 0, self.size - 1
        ends = (self.first, self.first + (self.outputs - 1) * self.stride)
        taps = (0, (self.taps - 1) * self.dilation)
        return min(ends) + min(taps), max(ends) + max(taps)

    def padded(self, before: int, after: int) -> "Side":
        """The same with so many zeros around the input."""
        return self._replace(size=before + self.size + after, first=self.first + before)


ABSENT = Side(size=1, outputs=1, out_size=1, taps=1, stride=1, dilation=1, first=0)
"""A dimension that a convolution does not have."""


def zeros_around(sides: Sequence[Side]) -> tuple[int, int]:
    """How many zeros before and after the input all these sides together take in."""
    reaches = [side.reach() for side in sides]
    size = sides[0].size
    return max(0, -min(first for first, _ in reaches)), max(0, max(last for _, last in reaches) - size + 1)


def of_convolution(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Side:
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return Side(size, outputs, outputs, kernel, stride, dilation, -padding)


def of_transposed(
    size: int, kernel: int, stride: int, padding: int, dilation: int, output_padding: int
) -> Iterator[Side]:
    """One for each remainder of an output's place by the stride: these outputs meet the same taps.

    Output o meets tap t where o + padding - t * dilation is a multiple of the stride. So the taps of one
    output lie stride / gcd(stride, dilation) apart, and what they meet goes back from the first.
    """
    out_size = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding
    step = stride // math.gcd(stride, dilation)
    for remainder in range(stride):
        place = remainder + padding
        met = [t for t in range(kernel) if (place - t * dilation) % stride == 0]
        tap = met[0] if met else 0
        yield Side(
            size=size,
            outputs=max(0, -(-(out_size - remainder) // stride)),
            out_size=out_size,
            taps=len(met),
            stride=1,
            dilation=-(step * dilation // stride),
            first=(place - tap * dilation) // stride,
            out_first=remainder,
            out_step=stride,
            tap_first=tap,
            tap_step=step,
        )
