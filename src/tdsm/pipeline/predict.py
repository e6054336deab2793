"""Classify images by a row of a run, from what the run's folder holds alone: its data may be gone.

Images are decoded as the run's were. A row counts only if it was fitted to the field that is there.
"""

import csv
import io as text_io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.device import resolve_device
from tdsm.base.errors import CheckpointError, DataError, UsageError
from tdsm.base.progress import track
from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.knn import votes
from tdsm.classification.probe import READ, Samples, neighbours_of
from tdsm.classification.rows import ROWS, Row
from tdsm.data.decode import Refused, decode, refuse_bad
from tdsm.data.names import natural_key
from tdsm.data.walk import walk
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features, fingerprint_field
from tdsm.features.store import FeatureRows, fault, read_shards
from tdsm.models.field import NeuralField
from tdsm.models.load import load_field
from tdsm.pipeline import data as run_data
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.field import new_field, require_trained
from tdsm.pipeline.folder import read_config
from tdsm.pipeline.rows import CHOICE, ROWS_FOLDER, classifiers_in
from tdsm.pipeline.run import FEATURES_FOLDER

Images = Float[Tensor, "_ channels height width"]
Probabilities = Float[Tensor, "_ classes"]
Read = Callable[[Tensor], Probabilities]
AT_ONCE = 512  # images decoded together
WRITERS = (".csv", ".json", ".parquet")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a row says of images.

    Args:
        row: Its name.
        validation_accuracy: How good it was on validation, in [0, 1].
        names: The images.
        classes: Names, in label order.
        probabilities: A row an image, sums of 1; the mean over the row's seeds. Those of k-NN are shares of votes.
    """

    row: str
    validation_accuracy: float
    names: list[str]
    classes: list[str]
    probabilities: Float[np.ndarray, "images classes"]

    def table(self) -> list[dict[str, Any]]:
        """Return an entry an image: its name, its class, and the probability of each class."""
        best = self.probabilities.argmax(axis=1)
        return [
            {"image": name, "class": self.classes[k], "probability": float(each[k])}
            | {f"p({label})": float(p) for label, p in zip(self.classes, each, strict=True)}
            for name, k, each in zip(self.names, best, self.probabilities, strict=True)
        ]


def predict_images(run: Path, images: Sequence[Path], *, row: str | None = None, device: str = "auto") -> Predictions:
    """Classify image files, and all images below folders.

    Args:
        run: A run's folder.
        images: Files and folders.
        row: A fitted row; the best by validation if not said.
        device: Where the field computes.

    Raises:
        UsageError: If the row is unknown.
        CheckpointError: If no such row is fitted to the field that is there.
        DataError: If an image cannot be used.
    """
    config = read_config(run)
    require_trained(run, config)
    field = load_field(run)
    fitted = _fitted(run, row, fingerprint_field(field))
    classes = io.read_object(run / run_data.FOLDER / run_data.FACTS)["classes"]
    read = _reader(run, config, field, ROWS[fitted.name], fitted, len(classes), resolve_device(device))
    files = image_files(images)
    starts = track(range(0, len(files), AT_ONCE), "classifying")
    parts = [read(decode_as(run, files[start : start + AT_ONCE])) for start in starts]
    names = [str(file) for file in files]
    return Predictions(fitted.name, fitted.accuracy, names, classes, torch.cat(parts).numpy())


def image_files(paths: Sequence[Path]) -> list[Path]:
    """List image files: those given, and all below the folders given, in natural order.

    Raises:
        DataError: If a path is not there, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(walk(path, follow_links=False).images, key=natural_key)
            if not found:
                raise DataError(f"{path}: no images here.")
            files += [path / name for name in found]
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder.")
    return files


def decode_as(run: Path, files: Sequence[Path]) -> Images:
    """Decode images as those of a run were, to [-1, 1].

    Raises:
        DataError: It lists all that cannot be read, or are of another size where the run's were not square.
    """
    channels, size = run_data.decoding_of(run)
    side = size[0] if size[0] == size[1] else None
    pixels: list[np.ndarray] = []
    bad: list[tuple[str, str]] = []
    for file in files:
        try:
            pixels.append(decode(file, "grey" if channels == 1 else "rgb", side).pixels)
        except Refused as reason:
            bad.append((str(file), str(reason)))
        else:
            bad += _another_size(file, pixels[-1], size)
    refuse_bad(bad)
    return torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1


def _another_size(file: Path, pixels: np.ndarray, size: tuple[int, int]) -> list[tuple[str, str]]:
    height, width = pixels.shape[1:]
    if (height, width) == size:
        return []
    expected = f"{size[0]}×{size[1]}, the size of the run's images, which are not square"
    return [(str(file), f"{height}×{width} pixels (height × width), expected {expected}")]


def as_text(entries: list[dict[str, Any]], to: Path) -> str | bytes:
    """Write entries in the form a file's ending names.

    Raises:
        UsageError: If it names none.
    """
    if to.suffix not in WRITERS:
        raise UsageError(f"--to {to}: expected a file that ends in {', '.join(WRITERS)}.")
    if to.suffix == ".json":
        return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    return _parquet(entries) if to.suffix == ".parquet" else _csv(entries)


def write_predictions(found: Predictions, to: Path) -> None:
    """Write predictions as CSV, JSON or Parquet, by the file's ending."""
    content = as_text(found.table(), to)
    io.write_bytes(to, content.encode() if isinstance(content, str) else content)


def _csv(entries: list[dict[str, Any]]) -> str:
    out = text_io.StringIO()
    writer = csv.DictWriter(out, entries[0] if entries else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return out.getvalue()


def _parquet(entries: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(entries), buffer)
    return buffer.getvalue().to_pybytes()


# ---------------------------------------------------------------- rows


@dataclass(frozen=True)
class Fitted:
    """A row of a run, as it was chosen on validation."""

    name: str
    path: Path
    choice: Mapping[str, Any]
    made_from: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """Validation accuracy in [0, 1], the mean over seeds."""
        return fmean(fit["validation_accuracy"] for fit in self.choice["fits"])


def _fitted(run: Path, wanted: str | None, field_hash: str) -> Fitted:
    """Return a row that was fitted to this field: the one wanted, or the best by validation, the smaller on a tie."""
    names = list(ROWS) if wanted is None else [ROWS.check(wanted)]
    there = [_taken_up(run, name) for name in names if (run / ROWS_FOLDER / name).is_dir()]
    if not (fitting := [row for row in there if _is_of(row, field_hash)]):
        which = f"row {wanted} is not" if wanted else "no row is"
        raise CheckpointError(f"{run}: {which} fitted to the field that is there. First: tdsm classify {run}")
    return max(fitting, key=lambda row: (row.accuracy, -row.choice["parameters"]))


def _taken_up(run: Path, name: str) -> Fitted:
    path = run / ROWS_FOLDER / name
    manifest = io.verify_folder(path, holds=[CHOICE])
    return Fitted(name, path, io.read_object(path / CHOICE), manifest.made_from)


def _is_of(row: Fitted, field_hash: str) -> bool:
    """Tell whether a row was fitted to features of this field, or needs none."""
    origin = row.made_from["features"]["train"]
    return not ROWS[row.name].is_trained or origin.get("field", field_hash) == field_hash


def _reader(
    run: Path,
    config: RunConfig,
    field: NeuralField,
    row: Row,
    fitted: Fitted,
    classes: int,
    device: torch.device,
) -> Read:
    """Return what makes probabilities (images, classes) of images in [-1, 1]."""
    if row.features is None:
        said = F.one_hot(torch.tensor(fitted.choice["fits"][0]["settings"]["class"]), classes).double()
        return lambda images: said.expand(len(images), -1)
    name, origin = row.features, fitted.made_from["features"]["train"]
    field = (field if row.is_trained else new_field(field.config, config.seed)).to(device).eval()
    maps = MapConfig.model_validate(config.maps.model_dump() | origin["maps"])
    read = _by_neighbours(run, row, fitted, classes) if row.head is None else _by_heads(fitted, classes, device)

    def probabilities(images: Images) -> Probabilities:
        parts = images.split(maps.batch_size)
        return read(torch.cat([compute_features(field, part, [name], maps)[name] for part in parts]))

    return probabilities


def _by_heads(fitted: Fitted, classes: int, device: torch.device) -> Read:
    """Return the mean of the probabilities that the heads of all seeds give."""

    @cache
    def heads(height: int, width: int, maps: int) -> list[TDSMClassifier]:
        return [head.to(device).eval() for head in classifiers_in(fitted.path, (height, width, maps), classes)]

    @torch.no_grad()
    def read(features: Tensor) -> Probabilities:
        batches = features.float().split(READ)
        parts = [
            torch.cat([head(batch.to(device)).double().softmax(dim=1).cpu() for batch in batches])
            for head in heads(*features.shape[1:])
        ]
        return torch.stack(parts).mean(dim=0)

    return read


def _by_neighbours(run: Path, row: Row, fitted: Fitted, classes: int) -> Read:
    """Return the shares of votes of a run's training samples, whose features are in its folder."""
    origin, settings = fitted.made_from["features"]["train"], fitted.choice["fits"][0]["settings"]
    folder = run / FEATURES_FOLDER / ("trained" if row.is_trained else "untrained")
    views = (fitted.made_from["views"] or {"count": 0})["count"]
    names = ["train", *(f"train-view{number}" for number in range(1, views + 1))]
    shards, ids = zip(*(_kept(folder / name / str(row.features), origin) for name in names), strict=True)
    kept = io.read_tensors(run / run_data.FOLDER / run_data.TENSORS)
    order = kept["train.ids"].argsort()
    places = order[torch.searchsorted(kept["train.ids"], torch.cat(ids), sorter=order)]
    train = Samples(FeatureRows([shard for part in shards for shard in part]), kept["train.labels"][places])

    def read(features: Tensor) -> Probabilities:
        blocks = neighbours_of(FeatureRows([features]), train, settings["neighbours"])
        shares = torch.cat([votes(cosines, near, classes, settings["temperature"]) for _, cosines, near in blocks])
        return shares / shares.sum(dim=1, keepdim=True)

    return read


def _kept(folder: Path, origin: Mapping[str, Any]) -> tuple[list[Tensor], Tensor]:
    """Return the shards of a feature in a run's folder, and the ids of their samples."""
    sidecars = [io.read_object(file) for file in sorted(folder.glob("shard-*.json"))]
    ids = [torch.tensor(sidecar["ids"]) for sidecar in sidecars]
    for index, (sidecar, own) in enumerate(zip(sidecars, ids, strict=True)):
        reason = fault(folder, index, own, dict(origin) | {"change": sidecar["made_from"]["change"]})
        if reason is not None:
            raise CheckpointError(f"{folder}: training features of another row or field: {reason}. Classify again.")
    if not ids:
        raise CheckpointError(f"{folder}: the training features that k-NN compares with are gone. Classify again.")
    return read_shards(folder, sum(map(len, ids))), torch.cat(ids)
