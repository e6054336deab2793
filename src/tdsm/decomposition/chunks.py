"""Work on rows a chunk at a time, with smaller chunks when memory runs out."""

from collections.abc import Callable

import torch
from torch import Tensor

from tdsm.base.errors import ResourceError

ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "out of memory")


def in_chunks(work: Callable[[Tensor], Tensor], rows: Tensor, chunk: int) -> Tensor:
    """Apply `work` to `chunk` rows at a time and join the results along their first axis.

    When memory runs out the chunk is halved and the work goes on where it stopped. Results do not depend on the
    chunk. Without gradients only one part exists beside the result.

    >>> in_chunks(lambda x: 2 * x, torch.arange(5), chunk=2)
    tensor([0, 2, 4, 6, 8])

    Raises:
        ResourceError: If not even a single row fits.
    """
    if len(rows) == 0:
        return work(rows)
    chunk = min(chunk, len(rows))
    parts: list[Tensor] = []
    joined: Tensor | None = None
    start = 0
    while start < len(rows):
        failure = None
        try:
            part = work(rows[start : start + chunk])
            if joined is None and not part.requires_grad and len(part) < len(rows):
                joined = part.new_empty(len(rows), *part.shape[1:])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        if failure is not None:  # dealt with here, where the failed attempt's tensors are no longer held
            chunk = _smaller(chunk, failure)
            continue
        if joined is None:
            parts.append(part)
        else:
            joined[start : start + len(part)] = part
        start += len(part)
    return torch.cat(parts) if joined is None else joined


def _smaller(chunk: int, failure: str) -> int:
    if chunk == 1:
        raise ResourceError(
            f"decoding a single token does not fit in memory ({failure}). Use a smaller size, fewer images or tokens."
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return chunk // 2


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an allocation failed, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ALLOCATION_FAILURES
    )
