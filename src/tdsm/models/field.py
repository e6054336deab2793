"""The conditioned neural field: pixels -> tokens -> colour at any coordinate.

A cascade of encoder blocks reads the context (pixel values beside Fourier features of their coordinates) into
latents, a processor refines the last block's latents into tokens, and a decoder answers queries by one
cross-attention to the tokens. Equal number for number to the published CascadedPerceiverIO.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from tdsm.base.errors import UsageError
from tdsm.decomposition import map_queries, mix
from tdsm.models.checks import check_context, check_images, check_keep, check_masks, check_points, check_tokens
from tdsm.models.config import FieldConfig
from tdsm.models.local import start_locally
from tdsm.models.weights import SavedField
from tdsm.tokenfield import Norm, Readout, TokenField
from tdsm.tokenfield.attention import Attention, FeedForward, TokenHeads
from tdsm.tokenfield.coords import FourierFeatures, grid, sinusoids


class EncoderBlock(nn.Module):
    """Read the context into one level of latents.

    x = latents + cross(latents, context);  x += project(previous);  x += self(x);  x += ff(x)
    """

    def __init__(self, config: FieldConfig, level: int):
        super().__init__()
        width, count = config.widths[level], config.num_latents
        start = torch.randn(count, width) if config.latents == "random" else sinusoids(count, width)
        self.latents = nn.Parameter(start, requires_grad=config.latents != "fixed")
        context_dim = config.channels + config.query_dim
        self.cross_attention = Attention(width, context_dim, config.cross_heads, config.cross_head_dim)
        before = config.widths[level - 1] if level else width
        self.project = nn.Linear(before, width) if before != width else nn.Identity()
        self.self_attention = Attention(width, None, config.self_heads, config.self_head_dim)
        self.feedforward = FeedForward(width, config.feedforward_multiple)

    def forward(self, context: Tensor, previous: Tensor | None) -> Tensor:
        """Return this level's latents, (batch, latents, width)."""
        x = self.latents + self.cross_attention(self.latents, context)
        if previous is not None:
            x = x + self.project(previous)
        x = x + self.self_attention(x)
        return x + self.feedforward(x)


class ProcessorBlock(nn.Module):
    """Refine tokens: x += self(x);  x += ff(x)."""

    def __init__(self, config: FieldConfig):
        super().__init__()
        self.self_attention = Attention(config.widths[-1], None, config.self_heads, config.self_head_dim)
        self.feedforward = FeedForward(config.widths[-1], config.feedforward_multiple)

    def forward(self, x: Tensor) -> Tensor:
        """Return refined tokens of the same shape."""
        x = x + self.self_attention(x)
        return x + self.feedforward(x)


class NeuralField(TokenField, SavedField):
    """A neural field conditioned on tokens that it encodes from an image.

    >>> config = FieldConfig(widths=(16, 24), num_latents=8, mapping_dim=6, cross_head_dim=8, self_head_dim=4)
    >>> field = NeuralField(config)
    >>> tokens = field.encode(torch.zeros(2, 3, 32, 32))
    >>> tokens.shape
    torch.Size([2, 8, 24])
    >>> field.decode(tokens, size=(48, 40)).shape
    torch.Size([2, 48, 40, 3])
    """

    def __init__(self, config: FieldConfig | None = None):
        super().__init__()
        self.config = config = config or FieldConfig()
        check_masks(config)
        self.num_axes = config.num_axes
        self.has_query_residual = config.has_query_residual
        self.has_nonlinear_readout = config.has_decoder_feedforward
        self.fourier = FourierFeatures(config.num_axes, config.mapping_dim, config.fourier_scale)
        self.encoder = nn.ModuleList(EncoderBlock(config, level) for level in range(len(config.widths)))
        self.processor = nn.ModuleList(ProcessorBlock(config) for _ in range(config.processor_depth))
        width = config.query_dim
        self.decoder_attention = Attention(width, config.widths[-1], config.cross_heads, config.cross_head_dim)
        if config.has_decoder_feedforward:
            self.decoder_feedforward = FeedForward(width, config.feedforward_multiple)
        self.to_channels = nn.Linear(width, config.channels)
        if config.latents == "local":
            start_locally(self.fourier, self.encoder, self.decoder_attention, config.channels)
        if config.has_masks:
            self.to_mask = nn.Linear(width, 1, bias=False)  # a softmax over tokens would not see it
            for unused in (self.decoder_attention.norm, self.decoder_attention.to_q):  # a lone token needs no query
                unused.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """What the field computes in."""
        return self.to_channels.weight.dtype

    def encode(
        self,
        images: Float[Tensor, "batch channels *size"],
        keep: Int[Tensor, " kept"] | Int[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens token_width"]:
        """Turn images into tokens.

        Args:
            images: Floating point values in [-1, 1], any height and width.
            keep: Row-major indices of the pixels the encoder may see, shared or one set an image; None sees all.

        Returns:
            One token per latent of the last block.

        Raises:
            UsageError: If the shape or dtype of the images, or the indices, do not fit this field.
        """
        check_images(self.config, self.dtype, images)
        coords = grid(images.shape[2:], device=images.device)
        values = rearrange(images, "b c ... -> b (...) c")
        if keep is not None:
            check_keep(keep, images.shape[0], coords.shape[0])
            keep = keep.expand(values.shape[0], -1)
            values = values.gather(1, repeat(keep, "b n -> b n c", c=values.shape[-1]))
            coords = coords[keep]
        return self.encode_points(values, coords)

    def encode_points(
        self,
        values: Float[Tensor, "batch points channels"],
        coords: Float[Tensor, "points axes"] | Float[Tensor, "batch points axes"],
    ) -> Float[Tensor, "batch tokens token_width"]:
        """Turn scattered samples of a signal into tokens: values and where they were taken, in [-1, 1]."""
        check_points(self.config, values, coords)
        features = self.fourier(coords).to(values.dtype).expand(*values.shape[:2], -1)
        return self.encode_context(torch.cat([values, features], dim=-1))

    def encode_context(
        self, context: Float[Tensor, "batch points context_width"]
    ) -> Float[Tensor, "batch tokens token_width"]:
        """Turn context vectors (values beside Fourier features of their coordinates) into tokens."""
        check_context(self.config, context)
        first, *rest = self.encoder
        tokens = first(context, None)
        for block in rest:
            tokens = block(context, tokens)
        for block in self.processor:
            tokens = block(tokens)
        return tokens

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Return the Fourier features of coordinates, in [-1, 1]."""
        return self.fourier(coords)

    def attend(self, queries: Tensor, tokens: Tensor) -> Float[Tensor, "batch points width"]:
        """Return what each query receives from all tokens together."""
        check_tokens(self.config, self.dtype, tokens)
        return self.decoder_attention(queries, tokens)

    def attend_one(self, tokens: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return the token values c_k: what every query receives from token k standing alone."""
        check_tokens(self.config, self.dtype, tokens)
        return self.decoder_attention.alone(tokens)

    def query_heads(self, queries: Tensor) -> Float[Tensor, "heads points key_dim"]:
        """Return the queries' side of the decoder's attention."""
        return self.decoder_attention.query_heads(queries)

    def token_heads(self, tokens: Tensor) -> TokenHeads:
        """Return the tokens' side of the decoder's attention."""
        check_tokens(self.config, self.dtype, tokens)
        return self.decoder_attention.token_heads(tokens)

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return to_channels(x + ff(x)) at x = query + attended; leading axes broadcast."""
        x = queries + attended if self.has_query_residual else attended
        if self.config.has_decoder_feedforward:
            x = x + self.decoder_feedforward(x)
        return self.to_channels(x)

    def separable_readout(self) -> Readout | None:
        """Return the readout's weights; None when it has no query residual or no feed-forward."""
        if not (self.has_query_residual and self.has_nonlinear_readout):
            return None
        ff = self.decoder_feedforward
        return Readout(
            norm=Norm(ff.norm.weight, ff.norm.bias, ff.norm.eps),
            hidden_weight=ff.hidden.weight,
            hidden_bias=ff.hidden.bias,
            output_weight=ff.output.weight,
            output_bias=ff.output.bias,
            channel_weight=self.to_channels.weight,
            channel_bias=self.to_channels.bias,
        )

    def masked_readout(self) -> Readout | None:
        """Return the readout with the mask logit as its last channel; None for a field without masks."""
        readout = self.separable_readout()
        if readout is None or not self.config.has_masks:
            return None
        return replace(
            readout,
            channel_weight=torch.cat([readout.channel_weight, self.to_mask.weight]),
            channel_bias=F.pad(readout.channel_bias, (0, 1)),
        )

    def reconstruct(self, queries: Tensor, tokens: Tensor) -> Float[Tensor, "batch points channels"]:
        """Return what all tokens together say: by one attention to them, or as a mixture where they have masks."""
        if self.config.has_masks:
            return mix(self, tokens, queries)
        return super().reconstruct(queries, tokens)

    def get_tdsm(
        self,
        data: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch samples context_width"],
        queries: Float[Tensor, "points query_width"],
        reduce_rgb: str = "mean",
    ) -> Float[Tensor, "batch side side maps"]:
        """Return the spatial map of raw data; see the function `get_tdsm`."""
        return get_tdsm(self, data, queries, reduce_rgb)


def get_tdsm(
    field: NeuralField,
    data: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch samples context_width"],
    queries: Float[Tensor, "points query_width"],
    reduce_rgb: str = "mean",
) -> Float[Tensor, "batch side side maps"]:
    """Return the token-decoded spatial map of raw data at the queries of a square grid.

    The name and arguments are those of the method's author; `spatial_map` is the general form.

    Args:
        field: The field that encodes and decodes.
        data: Images, or context vectors (pixel values beside Fourier features).
        queries: Query features of a square grid, row-major, or its coordinates.
        reduce_rgb: The reduction: "mean", "rgb" or "l2".

    Raises:
        UsageError: If a shape does not fit, or the number of queries is no square.
    """
    side = math.isqrt(queries.shape[0]) if queries.ndim == 2 else 0
    if not side or side * side != queries.shape[0] or field.num_axes != 2:
        raise UsageError(
            f"get_tdsm: queries have shape {tuple(queries.shape)}, expected (side · side, width) of a square grid. "
            "For other grids: spatial_map(field, field.encode(images), size=(height, width))."
        )
    tokens = field.encode_context(data) if data.ndim == 3 else field.encode(data)
    if queries.shape[1] == field.num_axes:
        queries = field.queries(queries)
    if queries.shape[1] != field.config.query_dim:
        raise UsageError(f"get_tdsm: queries are {queries.shape[1]} wide, this field has {field.config.query_dim}.")
    return map_queries(field, tokens, queries, reduction=reduce_rgb).unflatten(1, (side, side))
