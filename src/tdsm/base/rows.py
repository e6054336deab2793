"""Rows of several tensors, one after another, read by number without joining them."""

from collections.abc import Sequence

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
        self.ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])

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
        found, done, start = self.parts[0].new_empty(len(numbers), *self.shape[1:]), 0, 0
        for part, end, stop in zip(
            self.parts, self.ends.tolist(), torch.searchsorted(ascending, self.ends).tolist(), strict=True
        ):
            if stop > done:
                torch.index_select(part, 0, ascending[done:stop] - start, out=found[done:stop])
            done, start = stop, end
        return found if torch.equal(ascending, numbers) else found[order.argsort()]
