"""What a model must answer to be decomposed into its tokens.

A token field turns a signal into tokens and answers "what value is here?" at any coordinate by one
cross-attention to them. Seven answers are asked of a model, five where tokens are only decoded alone; decoding is then
written once, here:

    decode(tokens) at x = readout(q(x), attend(q(x), tokens))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.tokenfield.attention import AttentionParts, TokenHeads
from tdsm.tokenfield.coords import grid


class Norm(NamedTuple):
    """A layer norm over features: LN(x) = (x − mean x) / √(var x + ε) ⊙ γ + β."""

    weight: Float[Tensor, " width"]  # γ
    bias: Float[Tensor, " width"]  # β
    eps: float

    @classmethod
    def of(cls, layer: nn.LayerNorm, like: Tensor) -> "Norm":
        """Read a layer's, of the device and dtype of `like`; what it was built without is 1 or 0."""
        shape = layer.normalized_shape
        weight = like.new_ones(shape) if layer.weight is None else layer.weight
        return cls(weight, like.new_zeros(shape) if layer.bias is None else layer.bias, layer.eps)


@dataclass(frozen=True)
class Readout:
    """The weights of a readout whose first feed-forward layer separates over (query, token).

    x = q + a;   y = x + W_2 h + b_2;   value = W_c y + b_c,   or W_c LN'(y) + b_c with a final norm
    h = u ⊙ GELU(g),  [u, g] = W_1 LN(x) + b_1         gated: twice as many rows in W_1 as columns in W_2
    h = GELU(g),           g = W_1 LN(x) + b_1         ungated: as many
    """

    norm: Norm  # LN
    hidden_weight: Float[Tensor, "rows width"]  # W_1, rows of u first, then rows of g
    hidden_bias: Float[Tensor, " rows"]  # b_1
    output_weight: Float[Tensor, "width hidden"]  # W_2
    output_bias: Float[Tensor, " width"]  # b_2
    channel_weight: Float[Tensor, "channels width"]  # W_c
    channel_bias: Float[Tensor, " channels"]  # b_c
    final_norm: Norm | None = None  # LN'

    @property
    def is_gated(self) -> bool:
        """Tell whether hidden units are u ⊙ GELU(g)."""
        return self.hidden_weight.shape[0] == 2 * self.output_weight.shape[1]


class TokenField(nn.Module):
    """The interface of a decomposable model. Implement the seven methods that raise; leave `decode` as it is.

    Of these, `component_images` and what is made of them ask for all but `query_heads` and `token_heads`.

    Two attributes say what the decoder can express. `has_query_residual`: the readout sees the query itself, not only
    what was attended. `has_nonlinear_readout`: query and attended vector meet in a nonlinearity. Without both, the
    component images of solo decoding carry no space.
    """

    has_query_residual: bool
    has_nonlinear_readout: bool
    num_axes: int = 2

    def encode(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens token_width"]:
        """Turn signals into tokens."""
        raise NotImplementedError

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Turn coordinates in [-1, 1] into query features."""
        raise NotImplementedError

    def attend(
        self, queries: Float[Tensor, "points width"], tokens: Float[Tensor, "batch tokens token_width"]
    ) -> Float[Tensor, "batch points width"]:
        """Return what each query receives from all tokens together."""
        raise NotImplementedError

    def attend_one(self, tokens: Float[Tensor, "batch tokens token_width"]) -> Float[Tensor, "batch tokens width"]:
        """Return what every query receives from each token standing alone: the token values c_k."""
        raise NotImplementedError

    def query_heads(self, queries: Float[Tensor, "points width"]) -> Float[Tensor, "heads points key_dim"]:
        """Return the queries' side of the attention, head by head."""
        raise NotImplementedError

    def token_heads(self, tokens: Float[Tensor, "batch tokens token_width"]) -> TokenHeads:
        """Return the tokens' side of the attention, head by head, before the output projection."""
        raise NotImplementedError

    def attention_parts(
        self, queries: Float[Tensor, "points width"], tokens: Float[Tensor, "batch tokens token_width"]
    ) -> AttentionParts:
        """Return the terms whose sum over tokens and heads is `attend`."""
        heads = self.token_heads(tokens)
        return AttentionParts(heads.weights(self.query_heads(queries)), heads.values @ heads.output, heads.bias)

    def readout(
        self, queries: Float[Tensor, "*#batch width"], attended: Float[Tensor, "*#batch width"]
    ) -> Float[Tensor, "*batch channels"]:
        """Turn queries and what they received into values; leading axes broadcast."""
        raise NotImplementedError

    def separable_readout(self) -> Readout | None:
        """Return the readout's weights if it has the form of `Readout`, else None."""
        return None

    def masked_readout(self) -> Readout | None:
        """Return the readout with a mask logit as its last channel if tokens are mixed by masks, else None."""
        return None

    def reconstruct(
        self, queries: Float[Tensor, "points width"], tokens: Float[Tensor, "batch tokens token_width"]
    ) -> Float[Tensor, "batch points channels"]:
        """Return what all tokens together say at the queries."""
        return self.readout(queries, self.attend(queries, tokens))

    def decode(
        self,
        tokens: Float[Tensor, "batch tokens token_width"],
        size: Sequence[int] | None = None,
        coords: Float[Tensor, "points axes"] | None = None,
    ) -> Float[Tensor, "batch *points channels"]:
        """Decode all tokens together on a grid of `size` or at scattered `coords`.

        Args:
            tokens: Tokens of this field.
            size: Points along each axis, such as (32, 32); any size, not only the one trained on.
            coords: Coordinates in [-1, 1], (row, column) for images. Give either `size` or `coords`.

        Returns:
            Values of shape (batch, *size, channels), or (batch, points, channels) for `coords`.

        Raises:
            UsageError: If both or neither of `size` and `coords` are given, or they do not fit the field.
        """
        points, shape = resolve_points(self, size, coords, device=device_of(tokens))
        return self.reconstruct(self.queries(points), tokens).unflatten(1, shape)


def device_of(tokens: Tensor) -> torch.device:
    """Return where tokens are; raise `UsageError` unless they are floating point (batch, tokens, width)."""
    expected = "expected floating point (batch, tokens, width), none of them 0"
    if not isinstance(tokens, Tensor):
        raise UsageError(f"tokens are {type(tokens).__name__}, {expected}. Pass field.encode(images), a torch tensor.")
    if tokens.ndim != 3 or 0 in tokens.shape or not tokens.is_floating_point():
        hint = "These look like images: encode them first" if tokens.ndim > 3 else "Pass the tokens of the field"
        raise UsageError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, {expected}. {hint}, field.encode(images)."
        )
    return tokens.device


def resolve_points(
    field: TokenField,
    size: Sequence[int] | None,
    coords: Tensor | None,
    *,
    device: torch.device | str | None = None,
) -> tuple[Float[Tensor, "points axes"], tuple[int, ...]]:
    """Return the coordinates asked for by `size` or `coords`, and the shape their axis unfolds to."""
    if (size is None) == (coords is None):
        given = "neither" if size is None else "both"
        raise UsageError(f"decode: give either size=(H, W) or coords=(points, axes); {given} was given.")
    if coords is None:
        assert size is not None
        points = grid(size, device=device)
        if points.shape[1] != field.num_axes:
            raise UsageError(f"decode: size {tuple(size)} has {len(size)} axes, this field has {field.num_axes}.")
        return points, tuple(map(int, size))
    if not isinstance(coords, Tensor) or coords.ndim != 2 or coords.shape[1] != field.num_axes or not len(coords):
        seen = f"have shape {tuple(coords.shape)}" if isinstance(coords, Tensor) else f"are {type(coords).__name__}"
        raise UsageError(f"decode: coords {seen}, expected a tensor (points, {field.num_axes}), one point or more.")
    return coords.to(device), (coords.shape[0],)
