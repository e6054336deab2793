"""Random draws as a function of what they are for.

A draw depends on (seed, purpose, epoch, sample, ...) alone, never on what was drawn before it: order, worker
count, number of processes and a restart in the middle cannot change it.
"""

import hashlib

import torch


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Hash a seed and a purpose into a 63-bit seed.

    >>> derive_seed(0, "shuffle", 3) == derive_seed(0, "shuffle", 3)
    True
    >>> derive_seed(0, "shuffle", 3) == derive_seed(0, "shuffle", 4)
    False
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
