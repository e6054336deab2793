"""The errors a user can cause, each with the exit code the command line ends with.

Every message says what was being done, what was seen, what was expected and what to do.
`assert` is kept for our own mistakes.
"""


class TdsmError(Exception):
    """Any error this package raises on purpose."""

    exit_code = 1


class UsageError(TdsmError, ValueError):
    """An argument, option or shape that cannot be used."""

    exit_code = 2


class DataError(TdsmError, ValueError):
    """Images, labels or a data set that cannot be read or used."""

    exit_code = 3


class MixedSizesError(DataError):
    """Images of several sizes where one is needed and none was named."""


class CheckpointError(TdsmError, ValueError):
    """Weights, a run folder or a feature store that are missing, damaged or of another model."""

    exit_code = 4


class ResourceError(TdsmError, RuntimeError):
    """Not enough memory, disk or a missing optional package."""

    exit_code = 5


class NonFiniteError(TdsmError, ArithmeticError):
    """A loss or a weight became infinite or not a number."""

    exit_code = 6


class SpaceWarning(UserWarning):
    """Component images of this decoder cannot say anything about *where*."""


class CompletenessWarning(UserWarning):
    """The components miss the reconstruction by more than the tolerance asked for."""
