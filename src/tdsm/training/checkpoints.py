"""The state of a training under way as a folder: weights, optimizer moments, and what else decides the next step.

checkpoints/step-00000250/model.safetensors       the weights; other sets of tensors beside them by name
                          optimizer.safetensors   its moments
                          state.json              step, history, losses not yet shown, ...
                          manifest.json           sizes, hashes, and what the training was made from
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.base.settings import differences

FOLDER, OPTIMIZER, STATE = "checkpoints", "optimizer", "state.json"


def save_checkpoint(
    path: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    state: dict,
    made_from: dict,
    keep: int = 2,
) -> None:
    """Write sets of tensors by name, the optimizer's moments and `state` as one folder; keep the newest ones."""

    def fill(folder: Path) -> None:
        for name, entries in {**tensors, OPTIMIZER: _moments(optimizer)}.items():
            io.write_tensors(folder / f"{name}.safetensors", entries)
        io.write_json(folder / STATE, state)

    folder = Path(path) / FOLDER
    io.write_folder(folder / f"step-{step:08d}", fill, made_from)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def read_checkpoint(
    folder: Path, optimizer: torch.optim.Optimizer, made_from: dict
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Restore the optimizer in place; return `state` and the sets of tensors by name, on the CPU.

    Raises:
        CheckpointError: If the checkpoint was made from something else; it says from what.
    """
    if changed := differences(io.read_manifest(folder).made_from, io.plain(made_from)):
        raise CheckpointError(
            f"{folder}: made from something else: {'; '.join(changed)}. Give back what it was made from, or remove "
            f"{folder.parent} to start anew."
        )
    tensors = {file.stem: io.read_tensors(file) for file in sorted(folder.glob("*.safetensors"))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.pop(OPTIMIZER).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return io.read_object(folder / STATE), tensors


def latest_checkpoint(path: Path) -> Path | None:
    """Return the newest checkpoint that verifies against its hashes; warn of those passed over."""
    for folder in sorted((Path(path) / FOLDER).glob("step-*"), reverse=True):
        try:
            io.verify_folder(folder, holds=("model.safetensors", f"{OPTIMIZER}.safetensors", STATE))
            return folder
        except CheckpointError as error:
            warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
    return None


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    entries = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in entries.items() for name, value in entry.items()}
