"""A step as a function of its number: which samples it takes, and at what learning rate."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from tdsm.base.randomness import generator


class Order:
    """The samples of every step: an epoch's permutation, drawn once from (seed, epoch) and cut into batches.

    Batches are as large as said, or, where nothing of an epoch may be left over, at most so large and all alike: a
    small last one would be a step of as much weight on few samples, and has no statistics worth the name.

    >>> order = Order(10, batch_size=4, seed=0)
    >>> order.per_epoch, order(2)[0].shape, order(2)[1]
    (2, torch.Size([4]), 1)
    >>> even = Order(10, batch_size=4, seed=0, keeps_rest=True)
    >>> [even.size(step) for step in range(even.per_epoch)]
    [3, 3, 4]

    Args:
        count: Samples.
        batch_size: Samples a step.
        seed: Decides every permutation.
        purpose: Names the draws.
        keeps_rest: Whether what is left of an epoch is shared out among smaller batches, or dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, purpose: str = "order", keeps_rest: bool = False):
        self.count, self.batch_size, self.seed, self.purpose = count, batch_size, seed, purpose
        self.per_epoch = math.ceil(count / batch_size) if keeps_rest else count // batch_size
        self._taken = count if keeps_rest else self.per_epoch * batch_size
        self._drawn = (-1, torch.empty(0, dtype=torch.int64))

    def __call__(self, step: int) -> tuple[Int[Tensor, " batch"], int]:
        """Return the samples of a step and its epoch."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._drawn[0]:
            self._drawn = epoch, torch.randperm(self.count, generator=generator(self.seed, self.purpose, epoch))
        return self._drawn[1][self._edge(position) : self._edge(position + 1)], epoch

    def size(self, step: int) -> int:
        """Return how many samples a step takes."""
        position = step % self.per_epoch
        return self._edge(position + 1) - self._edge(position)

    def _edge(self, position: int) -> int:
        return self._taken * position // self.per_epoch


def warmup_cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """Return the rate of one of `steps` steps: linear warm-up to the peak, then a cosine to zero.

    >>> [warmup_cosine(1.0, step, steps=6, warmup=2) for step in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
