"""How fast a field trains: images a second, and what share of the device's peak its arithmetic is."""

import copy
import time

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tdsm.models.field import NeuralField
from tdsm.training.config import TrainConfig
from tdsm.training.objectives import training_loss

PEAK_FLOPS = {  # dense, a second, as NVIDIA's data sheets give them; the first name that fits counts
    "bfloat16": {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12},
    "float32": {"H200": 67e12, "H100 PCIe": 51e12, "H100": 67e12, "A100": 19.5e12},
}


class Throughput:
    """Count images over time spent in training steps.

    Args:
        flops: Of one image, forward and backward.
        peak: Flops a second of all devices together; None where it is not known.
    """

    def __init__(self, flops: float, peak: float | None):
        self.flops, self.peak = flops, peak
        self.images, self.seconds = 0, 0.0

    def step(self, images: int, began: float) -> None:
        """Count a step of so many images that began at a time of `time.monotonic`."""
        self.images += images
        self.seconds += time.monotonic() - began

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
    sizes are drawn.
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
