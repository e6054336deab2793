"""Which tokens to decode."""

from collections.abc import Sequence
from operator import index as index_of

from tdsm.base.errors import UsageError
from tdsm.decomposition.registry import SELECTIONS


def every_nth(num_tokens: int, n: int) -> list[int]:
    """Take tokens 0, n, 2n, ..."""
    return list(range(0, num_tokens, n))


def first(num_tokens: int, n: int) -> list[int]:
    """Take the first n tokens; all of them when there are fewer."""
    return list(range(min(n, num_tokens)))


def select_tokens(num_tokens: int, selection: str | Sequence[int] | None) -> list[int]:
    """Resolve a selection into token indices, in the order in which they become maps.

    >>> select_tokens(16, "stride:4")
    [0, 4, 8, 12]
    >>> select_tokens(16, "first:2")
    [0, 1]
    >>> select_tokens(3, None)
    [0, 1, 2]

    Args:
        num_tokens: Tokens there are.
        selection: None for all, "stride:n", "first:n", or indices in 0..num_tokens-1 without repeats.

    Raises:
        UsageError: If the selection is unknown, empty, repeats a token or names one that is not there.
    """
    if num_tokens < 1:
        raise UsageError(f"selection: there are {num_tokens} tokens, expected at least 1 to choose from.")
    if selection is None:
        return list(range(num_tokens))
    if isinstance(selection, str):
        return _by_name(num_tokens, selection)
    return _by_index(num_tokens, selection)


def _by_name(num_tokens: int, selection: str) -> list[int]:
    name, _, count = selection.partition(":")
    if name not in SELECTIONS or not count.isascii() or not count.isdigit() or int(count) < 1:
        known = ", ".join(f'"{key}:n"' for key in SELECTIONS)
        raise UsageError(f"selection {selection!r}: expected {known} with n of at least 1, or a list of indices.")
    return SELECTIONS[name](num_tokens, int(count))


def _by_index(num_tokens: int, selection: Sequence[int]) -> list[int]:
    try:
        indices = [index_of(index) for index in selection]
    except TypeError:
        raise UsageError(f"selection {selection!r}: expected a list of whole numbers, such as [0, 5, 7].") from None
    if not indices:
        raise UsageError("selection is empty: name at least one token, or None for all.")
    if len(set(indices)) < len(indices):
        raise UsageError(f"selection {indices} names a token twice; each may stand once.")
    outside = [index for index in indices if not 0 <= index < num_tokens]
    if outside:
        raise UsageError(f"selection names {outside}, but tokens run from 0 to {num_tokens - 1}.")
    return indices


def parse_selection(text: str) -> str | list[int] | None:
    """Read a selection from a command line: "all", "stride:n", "first:n", or indices such as "0,5,7".

    >>> parse_selection("0,5,7"), parse_selection("all"), parse_selection("stride:4")
    ([0, 5, 7], None, 'stride:4')
    """
    if text == "all":
        return None
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isascii() and part.isdigit() for part in parts) else text
