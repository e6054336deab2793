"""The data of a run: loaded anew by every stage, and refused unless they are those the run was made with."""

from collections import Counter
from pathlib import Path

import torch

from tdsm.base import io
from tdsm.base.errors import DataError
from tdsm.base.progress import track
from tdsm.data import Data, ImageSet, load_data
from tdsm.data.config import DataConfig
from tdsm.data.imageset import SPLITS

FOLDER, TENSORS, FACTS = "data", "images.safetensors", "data.json"
PARTS = ("ids", "labels", "hashes")


def load(config: DataConfig, seed: int) -> Data:
    """Load and split the data, showing progress."""
    return load_data(config, seed, progress=lambda items, title: track(items, title, unit="images"))


def fingerprints(data: Data) -> dict[str, str]:
    """Return a hash of everything in each split."""
    return {split: getattr(data, split).fingerprint() for split in SPLITS}


def keep_data(path: Path, data: Data, config: DataConfig) -> None:
    """Note a hash of every image of a new run; of a run that is there, check them.

    Raises:
        DataError: If the data are not those of the run; it says how many images were added, removed, changed.
    """
    if (path / FOLDER).is_dir():
        check_data(path, data)
        return

    def fill(folder: Path) -> None:
        sets = {split: getattr(data, split) for split in SPLITS}
        tensors = {f"{split}.{part}": getattr(images, part) for split, images in sets.items() for part in PARTS}
        io.write_tensors(folder / TENSORS, tensors)
        counts = {split: len(images) for split, images in sets.items()}
        facts = {"name": data.name, "source": config.source, "classes": data.train.classes, "images": counts}
        decoded = {"channels": data.train.channels, "size": data.train.size}
        io.write_json(folder / FACTS, facts | {"decoded": decoded, "notes": data.notes})

    io.write_folder(path / FOLDER, fill, {"data": fingerprints(data)})


def decoding_of(path: Path) -> tuple[int, tuple[int, int]]:
    """Return channels and (height, width) of the images a run was made with."""
    decoded = io.read_object(path / FOLDER / FACTS)["decoded"]
    return decoded["channels"], tuple(decoded["size"])


def check_data(path: Path, data: Data) -> None:
    """Refuse data that are not those a run was made with."""
    manifest = io.verify_folder(path / FOLDER, holds=[TENSORS, FACTS])
    if manifest.made_from == {"data": fingerprints(data)}:
        return
    kept = io.read_tensors(path / FOLDER / TENSORS)
    then = {split: {part: kept[f"{split}.{part}"] for part in PARTS} for split in SPLITS}
    words = [f"{split}: {said}" for split in SPLITS if (said := _change(then[split], getattr(data, split)))]
    raise DataError(
        f"{path}: the data are not those the run was made with. {'; '.join(words) or 'Their classes differ'}. Put them "
        "back, or name where they are with --data.source; for other data start another run."
    )


def _change(then: dict[str, torch.Tensor], now: ImageSet) -> str:
    """Say how many images of a split were added, removed, changed in place, moved or given another label."""
    before, after = Counter(then["hashes"].tolist()), Counter(now.hashes.tolist())
    added, removed = (after - before).total(), (before - after).total()
    changed = min(added, removed)
    counts = {"added": added - changed, "removed": removed - changed, "changed": changed}
    if not changed + added + removed:
        same = torch.equal(then["hashes"], now.hashes)
        counts["given another label"] = int((then["labels"] != now.labels).sum()) if same else 0
        counts["in another order"] = 0 if same and torch.equal(then["ids"], now.ids) else len(now)
    return ", ".join(f"{count} images {what}" for what, count in counts.items() if count)
