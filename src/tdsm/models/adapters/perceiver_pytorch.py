"""`PerceiverIO` of the package perceiver-pytorch as a token field.

    x = decoder_cross_attn(queries, tokens);   x += decoder_ff(x), if it has one;   value = to_logits(x)

The query is not added to what was attended. So component images of solo decoding are constant in space
(`missing_space` says so); `additive`, `leave_one_out`, `shapley` and `attention` do carry space.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tdsm.models.adapters.cross_attention import CrossAttentionField, Features, check_kind, require


class PerceiverIOField(CrossAttentionField):
    """Wrap a `perceiver_pytorch.PerceiverIO`; its weights are shared, not copied.

    The package knows vectors only, so what turns signals and coordinates into vectors is given beside it.

    Args:
        model: The package's model, in evaluation mode.
        embed_images: Signals to the model's `data`, (batch, elements, dim); modules become part of this field.
        embed_coords: Coordinates in [-1, 1] to the model's `queries`, (points, queries_dim).
        num_axes: Axes of the signal: 1 audio, 2 images, 3 volumes.

    Raises:
        ResourceError: If perceiver-pytorch is not installed.
        UsageError: If the model is another one.
    """

    has_query_residual = False

    def __init__(self, model: nn.Module, embed_images: Features, embed_coords: Features, num_axes: int = 2):
        super().__init__()
        check_kind(model, require("perceiver_pytorch", "perceiver-pytorch").PerceiverIO, "PerceiverIOField")
        self.model = model
        self.embed_images = embed_images
        self.embed_coords = embed_coords
        self.num_axes = num_axes
        self.has_nonlinear_readout = model.decoder_ff is not None
        self.heads = model.decoder_cross_attn.fn.heads

    def encode(self, images: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens token_width"]:
        """Turn signals into the model's latents."""
        return self.model(self.embed_images(images))

    def queries(self, coords: Float[Tensor, "points axes"]) -> Float[Tensor, "points width"]:
        """Embed coordinates."""
        return self.embed_coords(coords)

    def project_queries(self, queries: Tensor) -> Tensor:
        """Return Q of the decoder's cross-attention."""
        decoder = self.model.decoder_cross_attn
        return decoder.fn.to_q(decoder.norm(queries))

    def project_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of the decoder's cross-attention."""
        decoder = self.model.decoder_cross_attn
        return decoder.fn.to_kv(decoder.norm_context(tokens)).chunk(2, dim=-1)

    def output_projection(self) -> tuple[Tensor, Tensor | None]:
        """Return the decoder's output projection."""
        to_out = self.model.decoder_cross_attn.fn.to_out
        return to_out.weight, to_out.bias

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return to_logits(x + ff(x)) at x = attended; the query only tells how far to broadcast."""
        x = attended.expand(torch.broadcast_shapes(queries.shape, attended.shape))
        if self.model.decoder_ff is not None:
            x = x + self.model.decoder_ff(x)
        return self.model.to_logits(x)
