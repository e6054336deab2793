"""A set of labelled images, and the three sets one run works with."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from tdsm.base.device import room
from tdsm.base.errors import DataError, UsageError
from tdsm.base.text import count_of
from tdsm.data.hashes import image_hashes
from tdsm.data.mapped import MappedImages

SPLITS = ("train", "validation", "test")  # the sets of `Data`, by name
HASHED_AT_ONCE = 256  # images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Hold images, labels and stable sample ids.

    Pixels lie in memory or in files, and are reached by position, through `bytes` and `floats`. `ids` count the samples
    of a source split in the source's own order. Sets carved from one source split share that count, so an id says
    which picture it is, whatever was drawn or left out. A set without labels has no classes and labels of -1.

    >>> images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    >>> pets = ImageSet(images, torch.tensor([0, 1, 1]), torch.tensor([4, 7, 9]), ("cat", "dog"))
    >>> pets
    <ImageSet of 3 images, 8×8, 1 channel, 2 class names>
    >>> len(pets), pets.subset([2, 0]).ids, pets.floats([0]).shape
    (3, tensor([9, 4]), torch.Size([1, 1, 8, 8]))

    Raises:
        UsageError: If shapes or dtypes do not fit, labels have no class, or ids repeat.
    """

    images: UInt8[Tensor, "samples channels height width"] | MappedImages
    labels: Int64[Tensor, "samples"]
    ids: Int64[Tensor, "samples"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        if isinstance(self.images, Tensor) and (self.images.ndim != 4 or self.images.dtype != torch.uint8):
            raise UsageError(
                f"ImageSet: images are {self.images.dtype} of shape {tuple(self.images.shape)}, "
                "expected torch.uint8 of shape (samples, channels, height, width)."
            )
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            if values.shape != (len(self.images),) or values.dtype != torch.int64:
                raise UsageError(
                    f"ImageSet: {name} are {values.dtype} of shape {tuple(values.shape)}, "
                    f"expected torch.int64 of shape ({len(self.images)},), one for each image."
                )
        low, high = map(int, self.labels.aminmax()) if len(self) else (0, 0)
        if self.has_labels and not 0 <= low <= high < len(self.classes):
            raise UsageError(
                f"ImageSet: labels run from {low} to {high}, "
                f"expected 0 to {len(self.classes) - 1}, since there are {len(self.classes)} classes."
            )
        if not self.has_labels and not bool((self.labels == -1).all()):
            raise UsageError("ImageSet: there are labels but no classes, expected labels of -1 or class names.")
        if len(self.ids.unique()) != len(self):
            raise UsageError("ImageSet: ids repeat, expected each sample once.")

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.images)

    def __repr__(self) -> str:
        """Say what is held, not every pixel."""
        size = "×".join(map(str, self.size))
        kinds = f"{count_of(self.channels, 'channel')}, {count_of(len(self.classes), 'class name')}"
        return f"<ImageSet of {count_of(len(self), 'image')}, {size}, {kinds}>"

    @property
    def has_labels(self) -> bool:
        """Tell whether the images have labels."""
        return bool(self.classes)

    @property
    def channels(self) -> int:
        """Count the channels: 1 or 3."""
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def hashes(self) -> Int64[Tensor, "samples"]:
        """Hash each image's size and pixels: equal pictures have equal hashes, others hardly ever (8 bytes).

        They are computed once, in pieces; sets cut from this one take theirs from here, mapped ones from their files.
        """
        hashes = torch.empty(len(self), dtype=torch.int64)
        for part in torch.arange(len(self)).split(HASHED_AT_ONCE):
            hashes[part] = torch.from_numpy(image_hashes(self.bytes(part).cpu().numpy()))
        return hashes

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        for part in (self.hashes, self.labels, self.ids):
            digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Return the SHA-256 over the images' hashes, labels, ids and class names."""
        return self._fingerprint

    def subset(self, indices: Sequence[int] | Tensor) -> "ImageSet":
        """Keep the samples at these positions, in this order. Positions are not ids."""
        rows = self._rows(indices)
        images = self.bytes(rows) if isinstance(self.images, Tensor) else self.images.take(rows)
        part = ImageSet(images, self.labels[rows], self.ids[rows], self.classes)
        return part.with_hashes(self.hashes[rows]) if "hashes" in vars(self) else part

    def bytes(self, indices: Sequence[int] | Tensor) -> UInt8[Tensor, "n channels height width"]:
        """Return the images at `indices` as they are stored, 0..255."""
        rows = self._rows(indices)
        return self.images[rows.to(self.images.device) if isinstance(self.images, Tensor) else rows]

    def floats(self, indices: Sequence[int] | Tensor) -> Float[Tensor, "n channels height width"]:
        """Return the images at `indices` as float32 in [-1, 1]: x / 127.5 − 1."""
        return self.bytes(indices).float() / 127.5 - 1

    def near(self, device: torch.device) -> "ImageSet":
        """Move the images to a GPU if they take a quarter of its free memory at most; labels and ids stay."""
        if device.type != "cuda" or self.images.nbytes > room(device) // 4:
            return self
        moved = ImageSet(self.images.to(device), self.labels, self.ids, self.classes)
        return moved.with_hashes(self.hashes) if "hashes" in vars(self) else moved

    def with_hashes(self, hashes: Int64[Tensor, "samples"]) -> "ImageSet":
        """Tell these images' hashes, where they are known already; return the same set."""
        vars(self)["hashes"] = hashes
        return self

    def _rows(self, indices: Sequence[int] | Tensor) -> Tensor:
        rows = torch.as_tensor(indices)
        if rows.numel() == 0:
            return torch.empty(0, dtype=torch.int64)
        if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise UsageError(
                f"ImageSet: indices are {rows.dtype} of shape {tuple(rows.shape)}, expected a list of ints."
            )
        if not -len(self) <= int(rows.min()) <= int(rows.max()) < len(self):
            raise UsageError(f"ImageSet: indices run to {int(rows.max())}, but there are {len(self)} samples.")
        return rows.long()


@dataclass(frozen=True, eq=False)
class Data:
    """Hold what one run trains on, selects by and is scored on.

    `notes` are plain sentences about what was done to the data; print them wherever numbers are shown. `skipped` lists
    (name, reason) of every image left out because it cannot be used.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    name: str
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def has_labels(self) -> bool:
        """Tell whether the images have labels."""
        return self.train.has_labels

    def require_labels(self, what: str) -> None:
        """Refuse images without labels for what cannot do without.

        Raises:
            DataError: If there are no labels.
        """
        if not self.has_labels:
            raise DataError(
                f"{what}: the images of {self.name} have no labels, expected a class for each image. Training a field "
                "and analysing its parts need none; to classify, use a source with labels."
            )
