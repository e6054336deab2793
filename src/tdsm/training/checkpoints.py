"""The state of a training under way as a folder: weights, optimizer moments, and what else decides the next step."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.models.weights import load_strictly

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


def write_state(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write modules by name, the optimizer's moments, and `state` as JSON."""
    entries = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, entry in entries.items() for name, value in entry.items()}
    for name, module in modules.items():
        io.write_tensors(folder / f"{name}.safetensors", module.state_dict())
    io.write_tensors(folder / OPTIMIZER, moments)
    io.write_json(folder / STATE, state)


def read_state(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict:
    """Restore modules and optimizer in place and return `state`.

    Raises:
        CheckpointError: If weights are missing, unexpected or of another shape.
    """
    for name, module in modules.items():
        load_strictly(module, io.read_tensors(folder / f"{name}.safetensors"), where=str(folder))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in io.read_tensors(folder / OPTIMIZER).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return io.read_json(folder / STATE)


def save_checkpoint(path: Path, step: int, fill: Callable[[Path], None], keep: int = 2) -> None:
    """Write the checkpoint of a step as one folder and remove all but the newest `keep`."""
    folder = Path(path) / "checkpoints"
    io.write_folder(folder / f"step-{step:08d}", fill)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(path: Path) -> Path | None:
    """Return the newest checkpoint that verifies against its hashes; warn of those passed over."""
    for folder in sorted((Path(path) / "checkpoints").glob("step-*"), reverse=True):
        try:
            io.verify_folder(folder)
            return folder
        except CheckpointError as error:
            warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
    return None
