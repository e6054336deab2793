"""A step as a function of its number: which samples it takes, and at what learning rate."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from tdsm.base.randomness import generator


class Order:
    """The samples of every step: an epoch's permutation, drawn once from (seed, epoch) and cut into batches.

    >>> order = Order(10, batch_size=4, seed=0)
    >>> order.per_epoch, order(2)[0].shape, order(2)[1]
    (2, torch.Size([4]), 1)

    Args:
        count: Samples.
        batch_size: Samples a step.
        seed: Decides every permutation.
        purpose: Names the draws.
        keeps_rest: Whether what is left of an epoch makes a smaller batch, or is dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, purpose: str = "order", keeps_rest: bool = False):
        self.count, self.batch_size, self.seed, self.purpose = count, batch_size, seed, purpose
        self.per_epoch = math.ceil(count / batch_size) if keeps_rest else count // batch_size
        self._drawn = (-1, torch.empty(0, dtype=torch.int64))

    def __call__(self, step: int) -> tuple[Int[Tensor, " batch"], int]:
        """Return the samples of a step and its epoch."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._drawn[0]:
            self._drawn = epoch, torch.randperm(self.count, generator=generator(self.seed, self.purpose, epoch))
        return self._drawn[1][position * self.batch_size : (position + 1) * self.batch_size], epoch

    def size(self, step: int) -> int:
        """Return how many samples a step takes."""
        return min(self.batch_size, self.count - step % self.per_epoch * self.batch_size)


def warmup_cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """Return the rate of one of `steps` steps: linear warm-up to the peak, then a cosine to zero.

    >>> [warmup_cosine(1.0, step, steps=6, warmup=2) for step in (0, 1, 2, 4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
