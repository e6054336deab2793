"""One pure callable from a batch of arrays to a batch of arrays, the same wherever it runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from tdsm.base.device import resolve_device
from tdsm.base.errors import UsageError
from tdsm.base.registry import nearest
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features, fingerprint_field
from tdsm.features.kinds import FEATURES
from tdsm.models.load import load_field


class FieldFeatures:
    """Compute features of images by the field at a path.

    What it is made of are a path and settings, so any process makes the same one: an actor of a cluster, a worker of a
    `DataLoader`, `map` of a data set.

        features = FieldFeatures("runs/cifar", ["tokens", "pooled"])
        features({"image": images})["tokens"]      # images uint8 (batch, channels, height, width)

    Args:
        field: A run folder, a folder written by `save_pretrained`, or a published `.pt` checkpoint.
        names: Which features: names in FEATURES.
        maps: Which maps, for those that are maps.
        device: Where it computes: auto, cpu, cuda or cuda:N.
        heads: Cross- and self-attention heads of a `.pt` file, which does not say.

    Raises:
        UsageError: If a feature is unknown.
        CheckpointError: If there is no field.
    """

    def __init__(
        self,
        field: str | Path,
        names: Iterable[str],
        maps: MapConfig | None = None,
        device: str = "auto",
        heads: tuple[int, int] = (4, 8),
    ):
        self.names, self.maps = list(names), maps or MapConfig()
        if unknown := [name + nearest(name, FEATURES) for name in self.names if name not in FEATURES]:
            raise UsageError(f"features: unknown {'; '.join(unknown)}; expected some of {', '.join(FEATURES)}.")
        self.field = load_field(field, cross_heads=heads[0], self_heads=heads[1]).to(resolve_device(device))
        self.field_hash = fingerprint_field(self.field)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the features of `batch["image"]` by name, as they are stored, and all else of the batch as it is.

        Raises:
            UsageError: If the images are not uint8 (batch, channels, height, width) of the field's channels.
            NonFiniteError: If a value is not finite, or too large for the dtype it is stored in.
        """
        if "image" not in batch:
            raise UsageError(f"FieldFeatures: the batch holds {sorted(batch)}, expected 'image' among them.")
        images, channels = np.asarray(batch["image"]), self.field.config.channels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != channels:
            raise UsageError(
                f"FieldFeatures: images are {images.dtype} of shape {images.shape}, expected uint8 of shape "
                f"(batch, {channels}, height, width)."
            )
        floats = torch.from_numpy(np.array(images)).float() / 127.5 - 1
        features = compute_features(self.field, floats, self.names, self.maps)
        others = {name: values for name, values in batch.items() if name != "image"}
        return others | {name: feature.numpy() for name, feature in features.items()}
