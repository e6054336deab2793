"""How a field is built: widths and counts."""

from typing import Literal

from pydantic import Field

from tdsm.base.settings import Positive, Settings


class FieldConfig(Settings):
    """Widths and counts of a field. The defaults are the reference scale (CIFAR-10, 256 tokens × 512)."""

    channels: Positive = Field(
        default=3, description="Channels of the signal: 3 for RGB, 1 for grey. Runs take the data's."
    )
    num_axes: Positive = Field(default=2, description="Axes of the signal: 1 audio, 2 images, 3 volumes.")
    mapping_dim: Positive = Field(default=96, description="Fourier features per block; queries are twice as wide.")
    fourier_scale: float = Field(default=15.0, gt=0, description="Standard deviation of the Fourier matrix.")
    widths: tuple[Positive, ...] = Field(
        default=(256, 384, 512), min_length=1, description="Width of each encoder block."
    )
    num_latents: Positive = Field(default=256, description="Latents of every block, which is the number of tokens.")
    latents: Literal["fixed", "learned", "random", "local"] = Field(
        default="fixed",
        description="Latents' start: sinusoidal and fixed, sinusoidal and trained, random and trained, or each at a "
        "point of its own that it reads first, and trained.",
    )
    cross_heads: Positive = Field(default=4, description="Heads of every cross-attention.")
    cross_head_dim: Positive = Field(default=128, description="Width of a cross-attention head.")
    self_heads: Positive = Field(default=8, description="Heads of every self-attention.")
    self_head_dim: Positive = Field(default=128, description="Width of a self-attention head.")
    processor_depth: int = Field(default=4, ge=0, description="Rounds of self-attention and feed-forward.")
    feedforward_multiple: Positive = Field(default=4, description="Hidden width of a feed-forward over its width.")
    has_query_residual: bool = Field(
        default=True, description="Whether the decoder adds the query to what it attended."
    )
    has_decoder_feedforward: bool = Field(default=True, description="Whether the decoder has a feed-forward.")
    has_masks: bool = Field(
        default=False,
        description="Whether tokens are decoded alone and mixed by a mask each, instead of attended together.",
    )

    @property
    def num_tokens(self) -> int:
        """Tokens an image becomes."""
        return self.num_latents

    @property
    def query_dim(self) -> int:
        """Width of the query features, which is the decoder's width."""
        return 2 * self.mapping_dim
