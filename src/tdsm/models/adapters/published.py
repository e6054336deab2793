"""Read checkpoints of the published reference implementation ("CascadedPerceiverIO"), or of weights alone.

The `.pt` file holds `model_state_dict` and `fourier_encoder_state_dict`; a `.safetensors` file holds the same names,
or a field's own. Every width and count is read from the weights' shapes; head counts are not in them and are arguments.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.models.config import FieldConfig
from tdsm.models.copies import below, choose_copy
from tdsm.models.field import NeuralField

FOURIER = "fourier_encoder_state_dict"
MATRIX = re.compile(r"(.*\.)?B")
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
        path: A `.safetensors` file, or the `.pt` file, read with `weights_only=True`: nothing in it is executed. Words
            before the names, such as `module.`, are passed over; of several copies the average (ema) is taken.
        cross_heads: Heads of the cross-attentions of encoder and decoder.
        self_heads: Heads of the self-attentions.

    Raises:
        CheckpointError: If the file cannot be read, or weights are missing, unexpected or of another shape.
        UsageError: If a head count does not divide its projection.
    """
    found = io.read_tensors(path) if path.suffix == ".safetensors" else dict(_leaves(_read(path)))
    prefix = choose_copy(found, str(path))
    matrix = _matrix(found, prefix, str(path))
    weights = {name: t for name, t in below(found, prefix).items() if prefix + name != matrix}
    _refuse_hollow(weights | {"B": found[matrix]}, str(path))
    state = {_rename(name): t for name, t in weights.items() if not UNUSED.fullmatch(name)}
    state["fourier.matrix"] = found[matrix]
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
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: expected a table of weights, saw {type(checkpoint).__name__}.")
    return checkpoint


def _leaves(table: Mapping, start: str = "") -> Iterator[tuple[str, Any]]:
    """Walk over a table of tables: what each holds, by its name with dots."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _matrix(found: Mapping[str, Any], prefix: str, where: str) -> str:
    """Return the name of the Fourier matrix: a field's own, or the one that is called B, in a table of its own."""
    if (own := f"{prefix}fourier.matrix") in found:
        return own
    if not {f"{prefix}to_channels.weight", f"{prefix}to_logits.weight"} & found.keys():
        raise CheckpointError(f"{where}: weight 'to_channels.weight' is missing (or 'to_logits.weight'): no field.")
    named = [name for name in found if MATRIX.fullmatch(name)]
    if len(named) != 1:
        seen = ", ".join(dict.fromkeys(name.split(".")[0] for name in found)) or "nothing"
        raise CheckpointError(
            f"{where}: expected one Fourier matrix, {FOURIER!r} with B or 'fourier.matrix', saw {len(named)} among: "
            f"{seen}. Is it a checkpoint of a field?"
        )
    table = named[0].removesuffix("B")
    others = [name for name in below(found, table) if name != "B" and not f"{table}{name}".startswith(prefix)]
    if table and others:
        raise CheckpointError(f"{where}: {table[:-1]} should hold exactly 'B', saw B, {', '.join(others)}.")
    return named[0]


def _refuse_hollow(state: Mapping[str, Any], where: str) -> None:
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{where}: expected tensors only, but {', '.join(strange)} is none.")
    if hollow := [name for name, tensor in state.items() if not _is_whole(tensor)]:
        raise CheckpointError(f"{where}: tensors larger than what is stored of them: {', '.join(hollow)}.")


def _is_whole(tensor: Tensor) -> bool:
    """Whether every element is stored; strides of zero make a tensor of any size out of one number."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
