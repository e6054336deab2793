"""What a field refuses to read: one line that says what was given, and what fits."""

import torch
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.models.config import FieldConfig


def check_images(config: FieldConfig, dtype: torch.dtype, images: Tensor) -> None:
    """Refuse images of another shape or dtype."""
    if not isinstance(images, Tensor):
        raise UsageError(f"encode: images are {type(images).__name__}, expected a torch tensor.")
    if images.ndim != config.num_axes + 2 or images.shape[1] != config.channels:
        expected = "(batch, {}, {})".format(config.channels, ", ".join(["size"] * config.num_axes))
        raise UsageError(f"encode: images have shape {tuple(images.shape)}, this field takes {expected}.")
    if not images.is_floating_point():
        raise UsageError(
            f"encode: images are {images.dtype}, expected floating point in [-1, 1]. For bytes: images / 127.5 - 1."
        )
    check_dtype("encode: images", dtype, images)


def check_keep(keep: Tensor, images: int, pixels: int) -> None:
    """Refuse pixels that are not there, or sets of them that are not one an image."""
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


def check_points(config: FieldConfig, values: Tensor, coords: Tensor) -> None:
    """Refuse scattered samples without a coordinate each."""
    if values.ndim != 3 or coords.shape[-2:] != (values.shape[1], config.num_axes):
        raise UsageError(
            f"encode: values have shape {tuple(values.shape)} and coords {tuple(coords.shape)}, expected "
            f"(batch, points, {config.channels}) and (points, {config.num_axes})."
        )


def check_context(config: FieldConfig, context: Tensor) -> None:
    """Refuse context vectors of another width."""
    width = config.channels + config.query_dim
    if context.ndim != 3 or context.shape[-1] != width or not context.shape[1]:
        raise UsageError(
            f"encode: context has shape {tuple(context.shape)}, this field reads (batch, points, {width}): "
            f"{config.channels} values beside {config.query_dim} Fourier features."
        )


def check_tokens(config: FieldConfig, dtype: torch.dtype, tokens: Tensor) -> None:
    """Refuse tokens of another field."""
    if tokens.ndim != 3 or tokens.shape[-1] != config.widths[-1] or not tokens.shape[1]:
        raise UsageError(
            f"decode: tokens have shape {tuple(tokens.shape)}, this field decodes (batch, tokens, "
            f"{config.widths[-1]}). Pass the tokens of the same field: field.encode(images)."
        )
    check_dtype("decode: tokens", dtype, tokens)


def check_dtype(what: str, own: torch.dtype, given: Tensor) -> None:
    """Refuse another dtype than the field computes in, unless autocast will see to it."""
    mixed = given.is_floating_point() and torch.is_autocast_enabled(given.device.type)
    if given.dtype != own and not mixed:
        raise UsageError(f"{what} are {given.dtype}, this field computes in {own}. Convert one: .to({own}).")


def check_masks(config: FieldConfig) -> None:
    """Refuse masks in a decoder in which a lone token cannot say where."""
    if config.has_masks and not (config.has_query_residual and config.has_decoder_feedforward):
        raise UsageError(
            "field: has_masks needs has_query_residual and has_decoder_feedforward too: without them a token "
            "that stands alone cannot say where."
        )
