"""How fast a training is: images a second, and what share of the device's peak its arithmetic is."""

import copy
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tdsm.models.field import NeuralField
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import training_loss

HALF = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
PEAK_FLOPS = {  # dense, a second, as NVIDIA's data sheets give them; the first name that fits counts
    "bfloat16": HALF,
    "float16": HALF,
    "float32": {"H200": 67e12, "H100 PCIe": 51e12, "H100": 67e12, "A100": 19.5e12},
}
UNITS = {  # of CPUs, as Linux names them
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


class Throughput:
    """Count images over the time between `start` and `stop`.

    Args:
        flops: Of one image, forward and backward.
        peak: Flops a second of all devices together; None where it is not known.
    """

    def __init__(self, flops: float = 0.0, peak: float | None = None):
        self.flops, self.peak = flops, peak
        self.images, self.seconds, self.began = 0, 0.0, 0.0

    def start(self) -> None:
        """Count time from now on."""
        self.began = time.monotonic()

    def stop(self) -> None:
        """Count no time until the next start."""
        self.seconds += time.monotonic() - self.began

    def take(self) -> dict[str, float]:
        """Return images a second, and the MFU where the peak is known, since the last call."""
        rate = self.images / max(self.seconds, 1e-9)
        self.images, self.seconds = 0, 0.0
        shown = {"images_per_second": rate}
        return shown if self.peak is None else shown | {"mfu": rate * self.flops / self.peak}


def flops_of_image(
    field: NeuralField, images: Float[Tensor, "one channels height width"], config: TrainConfig
) -> float:
    """Count the matrix arithmetic of one image in a step, two flops a multiply-add.

    Counted on the forward pass of one image and tripled, backward passes costing twice as much; an estimate where
    sizes are drawn. A copy of the field is counted, since compiled blocks hide what they do.
    """
    plain = copy.deepcopy(field)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        training_loss(plain, images, config, seed=0, step=0)
    return 3.0 * counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the flops a second that a device can do at most; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_FLOPS[precision].items() if known in name), None)


def is_emulated(device: torch.device, precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether a CPU is known to have no units for a precision; False where nothing is known."""
    if device.type != "cpu" or precision not in UNITS or not cpuinfo.exists():
        return False
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))]
    return bool(lines) and not UNITS[precision] & set(lines[0].split())
