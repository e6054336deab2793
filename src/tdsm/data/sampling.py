"""Which samples stand for a whole set, where not all of them are looked at."""

import torch
from jaxtyping import Int
from torch import Tensor


def stratified_sample(labels: Int[Tensor, " samples"], count: int, draw: torch.Generator) -> Int[Tensor, " kept"]:
    """Draw `count` positions, every class with its share of them.

    A class of n of N samples is due count · n / N places: it gets the whole part, and the places left over go to the
    classes of the largest remainders, ties by draw. A set sorted by class is so seen in all its classes.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_sample(labels, 3, torch.Generator().manual_seed(0))]
    tensor([0, 0, 1])

    Returns:
        Positions in ascending order; all of them if there are no more than `count`.
    """
    total = len(labels)
    if count >= total:
        return torch.arange(total)
    shuffled = torch.randperm(total, generator=draw)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    _, sizes = labels.unique(return_counts=True)
    places = _places(sizes, count, draw)
    rank = torch.arange(total) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within its class
    return by_class[rank < places.repeat_interleave(sizes)].sort().values


def _places(sizes: Int[Tensor, " classes"], count: int, draw: torch.Generator) -> Int[Tensor, " classes"]:
    """Share out places in proportion to sizes, by largest remainders."""
    total = sizes.sum()
    places, remainder = count * sizes // total, count * sizes % total
    mixed = torch.randperm(len(sizes), generator=draw)
    first = mixed[remainder[mixed].argsort(descending=True, stable=True)]
    places[first[: count - int(places.sum())]] += 1
    return places
