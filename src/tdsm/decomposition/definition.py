"""Token-wise decoded decomposition as it is defined, and the same with tokens as a batch.

    I_k(x) = readout(q(x), attend(q(x), {z_k}))

`loop` is the definition and stays the reference for everything faster.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.chunks import in_chunks
from tdsm.tokenfield import TokenField

Tokens = Float[Tensor, "batch tokens token_width"]
Queries = Float[Tensor, "points width"]
Components = Float[Tensor, "batch tokens points channels"]

CHUNK_BYTES = 64 * 2**20
HIDDEN_PER_WIDTH = 8  # floats alive a query feature: a feed-forward of multiple 4 with gates


def loop(field: TokenField, tokens: Tokens, queries: Queries, chunk: int | None = None) -> Components:
    """Decode once per token, that token alone as context. `chunk` has nothing to divide here."""
    images = [field.readout(queries, field.attend(queries, tokens[:, k : k + 1])) for k in range(tokens.shape[1])]
    return torch.stack(images, dim=1)


def batched(field: TokenField, tokens: Tokens, queries: Queries, chunk: int | None = None) -> Components:
    """Decode `chunk` (image, token) pairs at a time, each pair as an image of one token."""

    def decode_alone(pairs: Float[Tensor, "pairs 1 token_width"]) -> Float[Tensor, "pairs points channels"]:
        return field.readout(queries, field.attend(queries, pairs))

    images = in_chunks(decode_alone, rearrange(tokens, "b k d -> (b k) 1 d"), chunk or default_chunk(queries))
    return images.unflatten(0, tokens.shape[:2])


def default_chunk(queries: Queries) -> int:
    """Return how many (image, token) pairs keep a feed-forward's hidden units under 64 MiB."""
    return max(1, CHUNK_BYTES // (queries.numel() * HIDDEN_PER_WIDTH * queries.element_size()))
