"""Rows of several tensors, one after another, read by number without joining them."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


class Rows:
    """Several tensors as one: `rows[numbers]` gives (len(numbers), ...) in their dtype.

    Only the rows asked for are read, so that tensors mapped from files may be larger than memory.

    >>> rows = Rows([torch.tensor([0, 10, 20]), torch.tensor([30, 40])])
    >>> rows.shape, rows[torch.tensor([4, 0, 3])]
    ((5,), tensor([40,  0, 30]))
    """

    def __init__(self, parts: Sequence[Tensor]):
        self.parts = list(parts)
        self.starts = list(accumulate(map(len, self.parts), initial=0))
        self._ends = torch.tensor(self.starts[1:])
        self.shape = (self.starts[-1], *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Count the bytes of all rows."""
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, numbers: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows ..."]:
        if len(self.parts) == 1:
            return self.parts[0][numbers]
        ascending, order = numbers.sort()
        found, start = self.parts[0].new_empty(len(numbers), *self.shape[1:]), 0
        parts, counts = torch.bucketize(ascending, self._ends, right=True).unique_consecutive(return_counts=True)
        for part, count in zip(parts.tolist(), counts.tolist(), strict=True):
            here, start = slice(start, start + count), start + count
            torch.index_select(self.parts[part], 0, ascending[here] - self.starts[part], out=found[here])
        return found if torch.equal(ascending, numbers) else found[order.argsort()]
