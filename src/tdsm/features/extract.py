"""Turn data sets into stored features: tokens, token values, spatial maps, reconstructions.

Every feature is channels last, so that one head fits all: a map is (height, width, maps), tokens are
(num_tokens, 1, token width).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tdsm.base.errors import ResourceError
from tdsm.base.progress import Progress
from tdsm.data import ImageSet
from tdsm.decomposition import spatial_map
from tdsm.decomposition.decompose import decompose
from tdsm.decomposition.reduce import reduce_components
from tdsm.decomposition.select import parse_selection
from tdsm.features.config import MapConfig
from tdsm.features.store import has_shard, shard_ranges, write_shard
from tdsm.models.field import NeuralField

Images = Float[Tensor, "batch channels rows columns"]  # maps may have another height and width
Features = Float[Tensor, "batch height width maps"]


def extract(
    field: NeuralField,
    images: ImageSet,
    config: MapConfig,
    folder: Path,
    transform: Callable[[Images, Tensor], Images] = lambda images, ids: images,
) -> None:
    """Compute and store the features of a data set, shard by shard; what is stored already is kept.

    Args:
        field: The frozen field.
        images: The samples, in store order.
        config: Which maps.
        folder: Where the shards stand or go.
        transform: Applied to images and their ids before encoding, such as an augmentation.

    Raises:
        CheckpointError: If shards of another field, data set or setting stand there.
        ResourceError: If the disk cannot hold them.
    """
    fill_store(
        folder,
        images,
        lambda images, ids: compute_features(field, transform(images, ids), config),
        fingerprint_of(field, images, config, transform(images.floats([0]), images.ids[:1])),
        config.batch_size,
    )


def fill_store(
    folder: Path,
    images: ImageSet,
    compute: Callable[[Images, Tensor], dict[str, Features]],
    fingerprint: str,
    batch_size: int,
) -> None:
    """Store what `compute` makes of images and their ids, shard by shard; what is stored already is kept.

    Args:
        folder: Where the shards stand or go.
        images: The samples, in store order.
        compute: From a batch of images and their ids to named features.
        fingerprint: Names all that decides the features; shards of another one are refused.
        batch_size: Images a call of `compute`.

    Raises:
        CheckpointError: If shards of another field, data set or setting stand there.
        ResourceError: If the disk cannot hold them.
    """
    ranges = shard_ranges(len(images))
    missing = [
        i for i, rows in enumerate(ranges) if not has_shard(folder, i, images.ids[rows.start : rows.stop], fingerprint)
    ]
    count = sum(len(ranges[i]) for i in missing)
    if missing:
        _check_disk(compute(images.floats([0]), images.ids[:1]), folder, count)
    with Progress(f"extracting {folder.name}", count, unit="images") as progress:
        for index in missing:
            rows = torch.arange(ranges[index].start, ranges[index].stop)
            parts = []
            for batch in rows.split(batch_size):
                parts.append(compute(images.floats(batch), images.ids[batch]))
                progress.advance(len(batch))
            features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_shard(folder, index, features, images.ids[rows], fingerprint)


@torch.no_grad()
def compute_features(field: NeuralField, images: Images, config: MapConfig) -> dict[str, Features]:
    """Compute every feature of a batch, in float16 for the maps and float32 for the rest."""
    field.eval()
    images = images.to(next(field.parameters()).device)
    size = tuple(images.shape[2:])
    tokens = field.encode(images)
    features = {
        "pixels": rearrange(images, "b c h w -> b h w c"),
        "reconstruction": field.decode(tokens, size=size),
        "tokens": rearrange(tokens, "b k d -> b k 1 d"),
        "values": rearrange(field.attend_one(tokens), "b k d -> b k 1 d"),
        "tdsm": make_maps(field, tokens, config, config.size or size).half(),
    }
    return {name: feature.cpu() for name, feature in features.items()}


def make_maps(field: NeuralField, tokens: Tensor, config: MapConfig, size: tuple[int, ...]) -> Features:
    """Return the maps of tokens: the TDSM for `solo`, the components of another method reduced likewise."""
    selection, reduction = parse_selection(config.selection), config.reduction
    if config.method == "solo":
        return spatial_map(field, tokens, size=size, reduction=reduction, selection=selection, strategy=config.strategy)
    components = decompose(field, tokens, size=size, method=config.method, selection=selection).components
    return reduce_components(components, reduction)


def fingerprint_of(field: NeuralField, images: ImageSet, config: MapConfig, example: Images) -> str:
    """Hash all that decides the features: weights, field and map settings, data set, and how images are changed."""
    digest = hashlib.sha256()
    # Defaults are left out, so that an option added later leaves the stores that were made without it valid.
    maps = config.model_dump(exclude={"strategy", "batch_size"}, exclude_defaults=True)
    settings = {"field": field.config.model_dump(exclude_defaults=True), "maps": maps}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(images.fingerprint().encode())
    for tensor in (*field.state_dict().values(), example):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_disk(features: dict[str, Features], folder: Path, count: int) -> None:
    needed = count * sum(feature.nbytes for feature in features.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise ResourceError(
            f"extract: the features of {count} images take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free "
            f"at {folder}. Decode fewer tokens (--maps.selection) or fewer images (--data.max-train)."
        )
