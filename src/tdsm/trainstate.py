"""The state of a training under way as a folder: weights, optimizer moments, and what else decides the next step."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tdsm import io
from tdsm.field import load_strictly

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
