"""The cross-attention of a foreign model, written once for all adapters.

    attend(q, Z) = W_o · concat_h softmax(Q_h · K_hᵀ / √d_h) V_h + b_o,   Q from the query, K and V from the tokens

An adapter, or your own model, says how queries and tokens are projected, and what the output projection is.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import ResourceError, UsageError
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.attention import TokenHeads

Features = Callable[[Tensor], Tensor]


class CrossAttentionField(TokenField):
    """A token field whose tokens are read by one multi-head attention. Abstract.

    Implement `encode`, `queries`, `readout` and the three methods below; attention, token values and the
    attention's parts follow. Any norm before the attention belongs into the projections.
    """

    heads: int

    def project_queries(self, queries: Float[Tensor, "points width"]) -> Float[Tensor, "points key_width"]:
        """Return Q of all heads side by side."""
        raise NotImplementedError

    def project_tokens(
        self, tokens: Float[Tensor, "batch tokens token_width"]
    ) -> tuple[Float[Tensor, "batch tokens key_width"], Float[Tensor, "batch tokens value_width"]]:
        """Return K and V of all heads side by side."""
        raise NotImplementedError

    def output_projection(self) -> tuple[Float[Tensor, "width value_width"], Float[Tensor, " width"] | None]:
        """Return W_o and b_o, or None for no b_o."""
        raise NotImplementedError

    def attend(
        self, queries: Float[Tensor, "points width"], tokens: Float[Tensor, "batch tokens token_width"]
    ) -> Float[Tensor, "batch points width"]:
        """Return what each query receives from all tokens together."""
        q, k, v = map(self._split, (self.project_queries(queries), *self.project_tokens(tokens)))
        attended = F.scaled_dot_product_attention(q.expand(*k.shape[:2], -1, -1), k, v)
        return F.linear(rearrange(attended, "b h n d -> b n (h d)"), *self.output_projection())

    def attend_one(self, tokens: Float[Tensor, "batch tokens token_width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what every query receives from each token standing alone: W_o V + b_o."""
        return F.linear(self.project_tokens(tokens)[1], *self.output_projection())

    def query_heads(self, queries: Float[Tensor, "points width"]) -> Float[Tensor, "heads points key_dim"]:
        """Return Q of every head."""
        return self._split(self.project_queries(queries))

    def token_heads(self, tokens: Float[Tensor, "batch tokens token_width"]) -> TokenHeads:
        """Return K and V of every head, and the output projection's rows of every head."""
        keys, values = map(self._split, self.project_tokens(tokens))
        weight, bias = self.output_projection()
        output = rearrange(weight, "w (h d) -> h d w", h=self.heads)
        return TokenHeads(keys, values, output, weight.new_zeros(weight.shape[0]) if bias is None else bias)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Refuse: what is wrapped is saved by the package that it is of.

        Raises:
            UsageError: It says how the weights are kept.
        """
        raise UsageError(
            f"save_pretrained: {type(self).__name__} wraps a model that tdsm cannot build again. Save that model as "
            "its own package does, and wrap it again after loading. The field has its weights, and those of what "
            "was passed beside it: field.state_dict()."
        )

    def _split(self, projected: Tensor) -> Tensor:
        return rearrange(projected, "... n (h d) -> ... h n d", h=self.heads)


def require(module: str, package: str) -> ModuleType:
    """Import an optional package, or say what to install.

    Raises:
        ResourceError: If it is not there.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ResourceError(
            f"this adapter needs the package {package}, which is not installed: pip install {package}"
        ) from None


def check_kind(model: object, kind: type, adapter: str) -> None:
    """Raise `UsageError` unless the model is of the kind this adapter adapts."""
    if not isinstance(model, kind):
        raise UsageError(f"{adapter}: got a {type(model).__name__}, expected a {kind.__module__}.{kind.__name__}.")
