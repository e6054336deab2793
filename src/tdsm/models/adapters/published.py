"""Read checkpoints of the published reference implementation ("CascadedPerceiverIO", a `.pt` file).

The file holds `model_state_dict` and `fourier_encoder_state_dict`. Every width and count is read from the
weights' shapes; head counts are not in them and are arguments.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tdsm.base.errors import CheckpointError, UsageError
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField

UNUSED = re.compile(r"input_proj\..*|projection_matrix")
RENAMES = (
    (r"^encoder_blocks\.", "encoder."),
    (r"^self_attn_blocks\.(\d+)\.0\.", r"processor.\1.self_attention."),
    (r"^self_attn_blocks\.(\d+)\.1\.", r"processor.\1.feedforward."),
    (r"^decoder_cross_attn\.", "decoder_attention."),
    (r"^decoder_ff\.", "decoder_feedforward."),
    (r"^to_logits\.", "to_channels."),
    (r"\.cross_attn\.", ".cross_attention."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.residual_proj\.", ".project."),
    (r"\.ff\.", ".feedforward."),
    (r"\.fn\.net\.0\.", ".hidden."),
    (r"\.fn\.net\.2\.", ".output."),
    (r"\.fn\.", "."),
)


def load_published(path: Path, *, cross_heads: int = 4, self_heads: int = 8) -> NeuralField:
    """Read a published checkpoint into a `NeuralField`.

    Args:
        path: The `.pt` file, read with `weights_only=True`: nothing in it is executed.
        cross_heads: Heads of the cross-attentions of encoder and decoder.
        self_heads: Heads of the self-attentions.

    Raises:
        CheckpointError: If the file cannot be read, or weights are missing, unexpected or of another shape.
        UsageError: If a head count does not divide its projection.
    """
    checkpoint = _read(path)
    state = {_rename(name): t for name, t in checkpoint["model_state_dict"].items() if not UNUSED.fullmatch(name)}
    state["fourier.matrix"] = checkpoint["fourier_encoder_state_dict"]["B"]
    config = infer_config(state, where=str(path), cross_heads=cross_heads, self_heads=self_heads)
    return NeuralField.from_state(config, state, where=str(path))


def infer_config(state: Mapping[str, Tensor], *, where: str, cross_heads: int, self_heads: int) -> FieldConfig:
    """Read widths and counts off the shapes of renamed weights."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{where}: weight {name!r} is missing, so the field's size cannot be read from it.")
        if state[name].ndim != 2 or not state[name].numel():
            raise CheckpointError(f"{where}: {name} has shape {tuple(state[name].shape)}, expected a matrix.")
        return state[name].shape

    def head_dim(name: str, heads: int, option: str) -> int:
        inner = shape(name)[0]
        if heads < 1 or inner % heads:
            raise UsageError(f"{where}: {name} has {inner} rows, which {option}={heads} does not divide.")
        return inner // heads

    levels = sum(bool(re.fullmatch(r"encoder\.\d+\.latents", name)) for name in state)
    depth = len({name.split(".")[1] for name in state if name.startswith("processor.")})
    axes, mapping_dim = shape("fourier.matrix")
    latents = [shape(f"encoder.{level}.latents") for level in range(max(levels, 1))]
    if len({count for count, _ in latents}) > 1:
        raise CheckpointError(f"{where}: blocks have {[n for n, _ in latents]} latents, expected equal counts.")
    has_feedforward = any(name.startswith("decoder_feedforward.") for name in state)
    hidden = shape("encoder.0.feedforward.output.weight")
    return FieldConfig(
        channels=shape("to_channels.weight")[0],
        num_axes=axes,
        mapping_dim=mapping_dim,
        widths=tuple(width for _, width in latents),
        num_latents=latents[0][0],
        cross_heads=cross_heads,
        cross_head_dim=head_dim("decoder_attention.to_q.weight", cross_heads, "cross_heads"),
        self_heads=self_heads,
        self_head_dim=head_dim("encoder.0.self_attention.to_q.weight", self_heads, "self_heads"),
        processor_depth=depth,
        feedforward_multiple=hidden[1] // hidden[0],
        has_decoder_feedforward=has_feedforward,
    )


def _read(path: Path) -> dict:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's advice on files that are refused below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files
        # The message of torch advises to load without its guard; ours does not repeat it.
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of tensors only ({type(error).__name__}). It is damaged, no "
            "checkpoint, or holds more than tensors; nothing in it was executed."
        ) from None
    expected = {"model_state_dict": dict, "fourier_encoder_state_dict": dict}
    for key, kind in expected.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
            seen = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
            raise CheckpointError(f"{path}: expected a table {key!r}, saw {seen}. Is it a published checkpoint?")
        strange = [name for name, value in checkpoint[key].items() if not isinstance(value, Tensor)]
        if strange:
            raise CheckpointError(
                f"{path}: {key} should hold tensors only, but {', '.join(map(str, strange))} is none."
            )
        if hollow := [name for name, tensor in checkpoint[key].items() if not _is_whole(tensor)]:
            raise CheckpointError(f"{path}: tensors larger than what is stored of them: {', '.join(hollow)}.")
    if set(checkpoint["fourier_encoder_state_dict"]) != {"B"}:
        seen = ", ".join(checkpoint["fourier_encoder_state_dict"])
        raise CheckpointError(f"{path}: fourier_encoder_state_dict should hold exactly 'B', saw {seen or 'nothing'}.")
    return checkpoint


def _is_whole(tensor: Tensor) -> bool:
    """Whether every element is stored; strides of zero make a tensor of any size out of one number."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
