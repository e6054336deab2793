"""The conditioned neural field: pixels -> tokens -> colour at any coordinate.

A cascade of encoder blocks reads the context (pixel values beside Fourier features of their coordinates) into
latents, a processor refines the last block's latents into tokens, and a decoder answers queries by one
cross-attention to the tokens. Equal number for number to the published CascadedPerceiverIO.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int
from pydantic import ValidationError
from torch import Tensor, nn

from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.decomposition import map_queries, mix
from tdsm.models.config import FieldConfig
from tdsm.tokenfield import GatedReadout, TokenField
from tdsm.tokenfield.attention import Attention, FeedForward, TokenHeads
from tdsm.tokenfield.coords import FourierFeatures, grid, sinusoids

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


MODEL_CARD = """---
{{ card_data }}
---

# A conditioned neural field

Turns an image into tokens and answers "what colour is here?" at any coordinate, by cross-attention to them.
Images are channels first, in [-1, 1]; `config.json` holds widths and counts.

    import tdsm
    field = tdsm.NeuralField.from_pretrained("THIS_REPOSITORY_OR_FOLDER")
    tokens = field.encode(images)
    components = tdsm.component_images(field, tokens, size=(32, 32))

`pip install tdsm`. Training data and scores: as recorded by whoever trained it.
"""


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


class NeuralField(
    TokenField,
    ModelHubMixin,
    library_name="tdsm",
    tags=["neural-field"],
    license="mit",
    model_card_template=MODEL_CARD,
):
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
        if config.has_masks:
            if not (config.has_query_residual and config.has_decoder_feedforward):
                raise UsageError(
                    "field: has_masks needs has_query_residual and has_decoder_feedforward too: without them a token "
                    "that stands alone cannot say where."
                )
            self.to_mask = nn.Linear(width, 1, bias=False)  # a softmax over tokens would not see it
            for unused in (self.decoder_attention.norm, self.decoder_attention.to_q):  # a lone token needs no query
                unused.requires_grad_(False)

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
        self._check_images(images)
        coords = grid(images.shape[2:], device=images.device)
        values = rearrange(images, "b c ... -> b (...) c")
        if keep is not None:
            self._check_keep(keep, images.shape[0], coords.shape[0])
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
        if values.ndim != 3 or coords.shape[-2:] != (values.shape[1], self.num_axes):
            raise UsageError(
                f"encode: values have shape {tuple(values.shape)} and coords {tuple(coords.shape)}, expected "
                f"(batch, points, {self.config.channels}) and (points, {self.num_axes})."
            )
        features = self.fourier(coords).to(values.dtype).expand(*values.shape[:2], -1)
        return self.encode_context(torch.cat([values, features], dim=-1))

    def encode_context(
        self, context: Float[Tensor, "batch points context_width"]
    ) -> Float[Tensor, "batch tokens token_width"]:
        """Turn context vectors (values beside Fourier features of their coordinates) into tokens."""
        width = self.config.channels + self.config.query_dim
        if context.ndim != 3 or context.shape[-1] != width or not context.shape[1]:
            raise UsageError(
                f"encode: context has shape {tuple(context.shape)}, this field reads (batch, points, {width}): "
                f"{self.config.channels} values beside {self.config.query_dim} Fourier features."
            )
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
        self._check_tokens(tokens)
        return self.decoder_attention(queries, tokens)

    def attend_one(self, tokens: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return the token values c_k: what every query receives from token k standing alone."""
        self._check_tokens(tokens)
        return self.decoder_attention.alone(tokens)

    def query_heads(self, queries: Tensor) -> Float[Tensor, "heads points key_dim"]:
        """Return the queries' side of the decoder's attention."""
        return self.decoder_attention.query_heads(queries)

    def token_heads(self, tokens: Tensor) -> TokenHeads:
        """Return the tokens' side of the decoder's attention."""
        self._check_tokens(tokens)
        return self.decoder_attention.token_heads(tokens)

    def readout(self, queries: Tensor, attended: Tensor) -> Float[Tensor, "*batch channels"]:
        """Return to_channels(x + ff(x)) at x = query + attended; leading axes broadcast."""
        x = queries + attended if self.has_query_residual else attended
        if self.config.has_decoder_feedforward:
            x = x + self.decoder_feedforward(x)
        return self.to_channels(x)

    def gated_readout(self) -> GatedReadout | None:
        """Return the readout's weights; None when it has no query residual or no feed-forward."""
        if not (self.has_query_residual and self.has_nonlinear_readout):
            return None
        ff = self.decoder_feedforward
        return GatedReadout(
            norm_weight=ff.norm.weight,
            norm_bias=ff.norm.bias,
            norm_eps=ff.norm.eps,
            hidden_weight=ff.hidden.weight,
            hidden_bias=ff.hidden.bias,
            output_weight=ff.output.weight,
            output_bias=ff.output.bias,
            channel_weight=self.to_channels.weight,
            channel_bias=self.to_channels.bias,
        )

    def masked_readout(self) -> GatedReadout | None:
        """Return the readout with the mask logit as its last channel; None for a field without masks."""
        readout = self.gated_readout()
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

    def _check_images(self, images: Tensor) -> None:
        config = self.config
        if not isinstance(images, Tensor):
            raise UsageError(f"encode: images are {type(images).__name__}, expected a torch tensor.")
        if images.ndim != config.num_axes + 2 or images.shape[1] != config.channels:
            expected = "(batch, {}, {})".format(config.channels, ", ".join(["size"] * config.num_axes))
            raise UsageError(f"encode: images have shape {tuple(images.shape)}, this field takes {expected}.")
        if not images.is_floating_point():
            raise UsageError(
                f"encode: images are {images.dtype}, expected floating point in [-1, 1]. For bytes: images / 127.5 - 1."
            )

        self._check_dtype("encode: images", images)

    def _check_keep(self, keep: Tensor, images: int, pixels: int) -> None:
        is_tensor = isinstance(keep, Tensor)
        integers = is_tensor and keep.dtype in (torch.int32, torch.int64)
        if not integers or not keep.ndim or keep.shape[:-1] not in ((), (1,), (images,)) or not keep.numel():
            seen = f"{keep.dtype} {tuple(keep.shape)}" if is_tensor else type(keep).__name__
            raise UsageError(
                f"encode: keep is {seen}, expected an integer tensor (kept,) or ({images}, kept), at least one pixel."
            )
        least, most = int(keep.min()), int(keep.max())
        if least < 0 or most >= pixels:
            raise UsageError(f"encode: keep names pixels {least}..{most}, expected indices in 0..{pixels - 1}.")

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 3 or tokens.shape[-1] != self.config.widths[-1] or not tokens.shape[1]:
            raise UsageError(
                f"decode: tokens have shape {tuple(tokens.shape)}, this field decodes (batch, tokens, "
                f"{self.config.widths[-1]}). Pass the tokens of the same field: field.encode(images)."
            )
        self._check_dtype("decode: tokens", tokens)

    def _check_dtype(self, what: str, given: Tensor) -> None:
        own = self.to_channels.weight.dtype
        mixed = given.is_floating_point() and torch.is_autocast_enabled(given.device.type)
        if given.dtype != own and not mixed:
            raise UsageError(f"{what} are {given.dtype}, this field computes in {own}. Convert one: .to({own}).")

    def write(self, folder: Path) -> None:
        """Write weights and config into a folder, as `save_pretrained` does, without a model card."""
        io.write_tensors(folder / WEIGHTS_FILE, self.state_dict(), metadata={"format": "pt"})
        io.write_json(folder / CONFIG_FILE, self.config.model_dump(mode="json"))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "NeuralField":
        """Load a saved field from a folder or the hub; damage is a `CheckpointError`."""
        config = Path(pretrained_model_name_or_path) / CONFIG_FILE
        if config.is_file():
            parse_config(io.read_json(config), where=str(config))  # before the hub's mixin reads it unchecked
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
        **_: object,
    ) -> "NeuralField":
        def find(name: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / name
            from huggingface_hub import hf_hub_download

            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        config = parse_config(io.read_json(find(CONFIG_FILE)), where=f"{model_id}/{CONFIG_FILE}")
        return cls.from_state(config, io.read_tensors(find(WEIGHTS_FILE)), where=model_id).to(map_location)

    @classmethod
    def from_state(cls, config: FieldConfig, state: dict[str, Tensor], where: str) -> "NeuralField":
        """Build a field from its config and exactly its weights; anything missing or unexpected is an error."""
        field = cls(config)
        load_strictly(field, state, where)
        return field.eval()


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


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights into a module; raise `CheckpointError` listing every missing, unexpected or misshapen one."""
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(wrong.values()):
        listed = "; ".join(f"{word}: {', '.join(names)}" for word, names in wrong.items() if names)
        raise CheckpointError(f"{where}: the weights do not fit this model. {listed}.")
    if odd := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{where}: weights that are not finite: {', '.join(odd)}. Use another copy.")
    module.load_state_dict(state)


def parse_config(data: object, where: str) -> FieldConfig:
    """Check a config read from a file; raise `CheckpointError` naming each wrong entry."""
    try:
        return FieldConfig.model_validate_json(json.dumps(data))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{where}: not the config of a field. {wrong}.") from None


def count_parameters(module: nn.Module) -> int:
    """Count all weights of a module, trained or fixed."""
    return sum(parameter.numel() for parameter in module.parameters())
