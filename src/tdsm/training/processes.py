"""The processes that share a training: as many as `torchrun` started, or this one alone.

Each has a rank; the first, rank 0, writes files and speaks. Whatever one of them fails with ends all: its exit code is
not 0, and torchrun stops the others.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, over NCCL with GPUs and gloo without; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Return which of its machine's processes this is, which is the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """Count the processes that have joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, 0 for the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Tell whether this process writes files and speaks."""
    return rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        dist.barrier()


def total(value: Tensor) -> Tensor:
    """Add up a value over all processes."""
    if count() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return total(gradient)


def total_passing_gradients(value: Tensor) -> Tensor:
    """Add up a value over all processes, and the gradients that come back to it."""
    return _Total.apply(value)


def from_first(make: Callable[[], str]) -> str:
    """Let the first process make a text, and give it to all, as bytes: torch's own way of sending texts unpickles."""
    if count() == 1:
        return make()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    text = torch.tensor(list(make().encode()) if is_first() else [], dtype=torch.uint8, device=device)
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, 0)
    text = text if is_first() else text.new_empty(int(length))
    dist.broadcast(text, 0)
    return bytes(text.tolist()).decode()


_is_sharing = False


@contextmanager
def sharing() -> Iterator[None]:
    """Let `each_sample` share its work out, which all processes must then reach; else each computes everything."""
    global _is_sharing
    before, _is_sharing = _is_sharing, True
    try:
        yield
    finally:
        _is_sharing = before


def each_sample(
    samples: int, compute: Callable[[Tensor], Tensor], batch_size: int, device: torch.device | str
) -> Float64[Tensor, " samples"]:
    """Compute one number for every sample, each process its share where they are `sharing`, and give all to all.

    Process r takes samples r, r + processes, ..., without padding. One sum brings the numbers together, each beside
    noughts, so that they come out as they went in, and counts every sample.

    >>> each_sample(5, lambda indices: indices**2, batch_size=2, device="cpu")
    tensor([ 0.,  1.,  4.,  9., 16.], dtype=torch.float64)
    """
    values = torch.zeros(2, samples, dtype=torch.float64, device=device)
    mine = torch.arange(samples)[rank() :: count()] if _is_sharing else torch.arange(samples)
    for indices in mine.split(batch_size):
        if len(indices):
            places = indices.to(device)
            values[0, places] = compute(indices).to(values)
            values[1, places] += 1
    values = (total(values) if _is_sharing else values).cpu()
    assert bool((values[1] == 1).all()), "a sample was counted never or twice"
    return values[0]


def shares(size: int, accumulate: int = 1) -> list[slice]:
    """Cut a batch into a share for each process, and this one's into parts to take one after another.

    >>> shares(10, accumulate=3)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    parts = count() * accumulate
    edges = [size * part // parts for part in range(parts + 1)]
    mine = range(rank() * accumulate, (rank() + 1) * accumulate)
    return [slice(edges[part], edges[part + 1]) for part in mine]
