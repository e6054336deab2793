"""Ways to decode every token alone: the definition, the same in batches, and the same values from token values."""

from collections.abc import Callable
from dataclasses import dataclass

from tdsm.decomposition.definition import Components, batched, loop
from tdsm.decomposition.exact import exact


@dataclass(frozen=True)
class Strategy:
    """A way to decode tokens alone, `decode(field, tokens, queries, chunk)`, and what it can besides.

    One that `reads_values` decodes the token values c_k: it reduces and pools on the way, by a choice of `backend`.
    """

    decode: Callable[..., Components]
    reads_values: bool = False


LOOP, BATCHED, EXACT = Strategy(loop), Strategy(batched), Strategy(exact, reads_values=True)
