"""Images that lie in files and are read when asked for."""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from tdsm.base.rows import Rows

READ = 256  # images read at once where all are


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Some rows of mapped uint8 images (channels, height, width), in an order of their own.

    Args:
        rows: All images that are mapped.
        places: Which of them, 8 bytes an image: all that is in memory.
    """

    rows: Rows
    places: Int64[Tensor, "samples"]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, positions: Int64[Tensor, "some"]) -> UInt8[Tensor, "some channels height width"]:
        return self.rows[self.places[positions]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (samples, channels, height, width)."""
        return (len(self), *self.rows.shape[1:])

    @property
    def nbytes(self) -> int:
        """Count the bytes all these images take."""
        return prod(self.shape)

    def take(self, positions: Int64[Tensor, "some"]) -> "MappedImages":
        """Choose among them without reading any."""
        return MappedImages(self.rows, self.places[positions])

    def to(self, device: torch.device) -> UInt8[Tensor, "samples channels height width"]:
        """Read all of them into a device's memory, a few at a time."""
        found = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for part in torch.arange(len(self)).split(READ):
            found[part[0] : part[-1] + 1] = self[part].to(device)
        return found
