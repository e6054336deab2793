"""Where things are computed."""

import os
import re

import torch

from tdsm.base.errors import ResourceError, UsageError


def resolve_device(name: str) -> torch.device:
    """Turn auto, cpu, cuda or cuda:N into a device; of several processes each takes a GPU of its own by auto.

    Raises:
        UsageError: If the name is none of these.
        ResourceError: If the device is not there.
    """
    if name == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ResourceError(f"--device {name}: torch sees {count} CUDA devices here. Use --device auto or cpu.")
    return device


def room(device: torch.device) -> int:
    """Return how many bytes may still be taken of a GPU's memory, those that torch holds and does not use included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
