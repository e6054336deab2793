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

from tdsm.data import ImageSet
from tdsm.decomposition import spatial_map
from tdsm.errors import ResourceError
from tdsm.field import NeuralField
from tdsm.progress import Progress
from tdsm.select import parse_selection
from tdsm.settings import MapConfig
from tdsm.store import has_shard, shard_ranges, write_shard

Images = Float[Tensor, "batch channels height width"]
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
    ranges = shard_ranges(len(images))
    fingerprint = fingerprint_of(field, images, config, transform(images.floats([0]), images.ids[:1]))
    missing = [
        i for i, rows in enumerate(ranges) if not has_shard(folder, i, images.ids[rows.start : rows.stop], fingerprint)
    ]
    if missing:
        _check_disk(field, images, config, folder, sum(len(ranges[i]) for i in missing))
    with Progress(f"extracting {folder.name}", sum(len(ranges[i]) for i in missing), unit="images") as progress:
        for index in missing:
            rows = torch.arange(ranges[index].start, ranges[index].stop)
            parts = []
            for batch in rows.split(config.batch_size):
                parts.append(compute_features(field, transform(images.floats(batch), images.ids[batch]), config))
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
    maps = spatial_map(
        field,
        tokens,
        size=config.size or size,
        reduction=config.reduction,
        selection=parse_selection(config.selection),
        strategy=config.strategy,
    )
    features = {
        "pixels": rearrange(images, "b c h w -> b h w c"),
        "reconstruction": field.decode(tokens, size=size),
        "tokens": rearrange(tokens, "b k d -> b k 1 d"),
        "values": rearrange(field.attend_one(tokens), "b k d -> b k 1 d"),
        "tdsm": maps.half(),
    }
    return {name: feature.cpu() for name, feature in features.items()}


def fingerprint_of(field: NeuralField, images: ImageSet, config: MapConfig, example: Images) -> str:
    """Hash all that decides the features: weights, field and map settings, data set, and how images are changed."""
    digest = hashlib.sha256()
    settings = {"field": field.config.model_dump(), "maps": config.model_dump(exclude={"strategy", "batch_size"})}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(images.fingerprint().encode())
    for tensor in (*field.state_dict().values(), example):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_disk(field: NeuralField, images: ImageSet, config: MapConfig, folder: Path, count: int) -> None:
    features = compute_features(field, images.floats([0]), config)
    needed = count * sum(feature.nbytes for feature in features.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise ResourceError(
            f"extract: the features of {count} images take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free "
            f"at {folder}. Decode fewer tokens (--maps.selection) or fewer images (--data.max-train)."
        )
