"""What a failed check says. No torch here: pytest plugins may import it freely."""

from bi_compile.errors import _Message


class BatchVarianceError(_Message, AssertionError):
    """A sample's output has other bits in a batch than alone."""


class InaccurateResultError(_Message, AssertionError):
    """The results are farther from the float64 reference than stock's are."""


class VacuousCheckError(_Message, AssertionError):
    """The check could not have failed, so its passing would show nothing."""
