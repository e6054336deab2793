"""Features of an image set by a field: computed by one pure function, kept on disk, verified once a process."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base.errors import NonFiniteError
from tdsm.base.progress import Progress
from tdsm.data import ImageSet
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded, Images, Maps
from tdsm.features.store import FeatureRows, fault, read_shards, require_room, shard_ranges, write_shard
from tdsm.models.field import NeuralField

Lent = Callable[[str, dict[str, Any]], list[Tensor] | None]
Change = Callable[[Images, Tensor], Images]  # of images and their ids, such as an augmentation


@torch.no_grad()
def compute_features(field: NeuralField, images: Images, names: Iterable[str], config: MapConfig) -> dict[str, Maps]:
    """Compute features of a batch by name, on the field's device; return them on the CPU as they are stored.

    Maps of tokens are stored in `config.dtype`, everything else in float32.

    Raises:
        NonFiniteError: If a value is not finite, or too large for the dtype it is stored in.
    """
    field.eval()
    encoded = Encoded(field, images.to(next(field.parameters()).device), config)
    return {name: _stored(name, FEATURES[name].compute(encoded), config).cpu() for name in names}


@torch.no_grad()
def precision_error(field: NeuralField, images: Images, config: MapConfig) -> float:
    """Return by which share tokens in the precision of the settings differ from those in float32, root mean square."""
    images = images.to(next(field.parameters()).device)
    exact, tokens = field.eval().encode(images), Encoded(field, images, config).tokens
    return ((tokens - exact).square().mean() / exact.square().mean()).sqrt().item()


def fingerprint_field(field: NeuralField) -> str:
    """Hash a field: its config and every weight."""
    digest = hashlib.sha256(json.dumps(field.config.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(field.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def feature_origin(
    name: str, field_hash: str, data: str, config: MapConfig, change: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Name all that decides a feature.

    Args:
        name: In FEATURES.
        field_hash: Of `fingerprint_field`.
        data: The fingerprint of the images.
        config: Which maps; settings that do not matter to this feature are left out.
        change: What was done to the images before encoding.
    """
    kind, settings = FEATURES[name], config.model_dump(mode="json")
    used = [*kind.settings, *(["dtype"] if kind.is_map else [])]
    origin = {"field": field_hash, "data": data, "feature": name}
    if kind.needs_field and config.precision != "float32":
        origin["precision"] = config.precision
    return origin | {"maps": {key: settings[key] for key in used}, "change": change}


class FeatureSet:
    """The features of one image set by one field.

    Each is extracted when it is first asked for and what is there already is kept, if it was made from just this.

    Args:
        folder: Where the features stand or go, a folder each.
        field: The frozen field.
        field_hash: Of `fingerprint_field`.
        images: The samples, in store order.
        config: Which maps.
        change: Applied to images and their ids before encoding.
        change_name: What `change` is, as JSON can hold it.
        lent: Returns the shards of a feature that was made elsewhere, given its name and all that decides it, or None.
        say: Told in one line why features that are there are made anew.
    """

    def __init__(
        self,
        folder: Path,
        field: NeuralField,
        field_hash: str,
        images: ImageSet,
        config: MapConfig,
        *,
        change: Change | None = None,
        change_name: dict[str, Any] | None = None,
        lent: Lent | None = None,
        say: Callable[[str], None] = lambda words: None,
    ):
        self.folder, self.field, self.field_hash, self.images, self.config = folder, field, field_hash, images, config
        self.change, self.change_name, self.lent, self.say = change, change_name, lent, say
        self._rows: dict[str, FeatureRows] = {}

    def made_from(self, name: str) -> dict[str, Any]:
        """Name all that decides a feature."""
        return feature_origin(name, self.field_hash, self.images.fingerprint(), self.config, self.change_name)

    def rows(self, name: str) -> FeatureRows:
        """Return a feature of all samples; extract what is not there."""
        self.extract([name])
        return self._rows[name]

    def extract(self, names: Iterable[str]) -> None:
        """Compute and store features shard by shard, all that are missing of a batch in one pass.

        Raises:
            NonFiniteError: If a value is not finite or does not fit its dtype.
            ResourceError: If the disk cannot hold them.
        """
        names = list(dict.fromkeys(names))
        for name in names:
            if name not in self._rows and self.lent and (shards := self.lent(name, self.made_from(name))) is not None:
                self._rows[name] = FeatureRows(shards)
        names = [name for name in names if name not in self._rows]
        missing = self._missing(names)
        if missing:
            self._check_disk(missing)
            if self.config.precision != "float32":
                error = precision_error(self.field, self.images.floats(range(min(16, len(self.images)))), self.config)
                self.say(f"{self.folder.name}: tokens by {self.config.precision} are {100 * error:.2g} % off, rms.")
        samples = sum(len(rows) for rows, _ in missing.values())
        with Progress(f"extracting {self.folder.name}", samples, unit="images") as progress:
            for index, (rows, wanted) in missing.items():
                self._fill(index, torch.tensor(rows), wanted, progress)
        for name in names:
            self._rows[name] = FeatureRows(read_shards(self.folder / name, len(self.images)))

    def _missing(self, names: list[str]) -> dict[int, tuple[range, list[str]]]:
        """List the shards to compute: their samples and the features wanted of them."""
        missing: dict[int, tuple[range, list[str]]] = {}
        for name in names:
            origin, reasons = self.made_from(name), set()
            for index, rows in enumerate(shard_ranges(len(self.images))):
                ids = self.images.ids[rows.start : rows.stop]
                if (reason := fault(self.folder / name, index, ids, origin)) is not None:
                    missing.setdefault(index, (rows, []))[1].append(name)
                    reasons.add(reason)
            if odd := sorted(reasons - {"missing"}):
                self.say(f"{self.folder.name}/{name}: extracted anew, it was {odd[0]}.")
        return dict(sorted(missing.items()))

    def _fill(self, index: int, rows: Tensor, names: list[str], progress: Progress) -> None:
        parts = []
        for batch in rows.split(self.config.batch_size):
            parts.append(self._compute(batch, names))
            progress.advance(len(batch))
        for name in names:
            feature = torch.cat([part[name] for part in parts])
            write_shard(self.folder / name, index, feature, self.images.ids[rows], self.made_from(name))

    def _compute(self, rows: Tensor, names: Iterable[str]) -> dict[str, Maps]:
        images = self.images.floats(rows)
        images = images if self.change is None else self.change(images, self.images.ids[rows])
        return compute_features(self.field, images, names, self.config)

    def _check_disk(self, missing: dict[int, tuple[range, list[str]]]) -> None:
        names = {name for _, wanted in missing.values() for name in wanted}
        bytes_of = {name: feature.nbytes for name, feature in self._compute(torch.tensor([0]), names).items()}
        needed = sum(len(rows) * bytes_of[name] for rows, wanted in missing.values() for name in wanted)
        self.folder.mkdir(parents=True, exist_ok=True)
        remedy = (
            "Decode fewer tokens (--maps.selection), smaller maps (--maps.size) or fewer images (--data.max-train)."
        )
        require_room(self.folder, needed, sorted(names), len(self.images), remedy)


def _stored(name: str, feature: Maps, config: MapConfig) -> Maps:
    dtype = getattr(torch, config.dtype) if FEATURES[name].is_map else torch.float32
    largest = feature.abs().max().item()
    if not largest <= torch.finfo(dtype).max:
        raise NonFiniteError(
            f"extract: the largest value of {name} is {largest:.3g}, which {str(dtype)[6:]} cannot hold. "
            + ("Store maps in a wider one: --maps.dtype float32." if largest < 3e38 else "Is the field trained?")
        )
    return feature.to(dtype)
