"""Fit every head and baseline of a run, choose on validation, read the test split once a row and seed, and tabulate.

A row's folder holds `choice.json` and `model.safetensors` of its first seed, `seed-1.safetensors` and so on of further
ones, whose validation accuracy and settings stand under `further` in `choice.json`. k-NN has one seed and no weights.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.randomness import derive_seed
from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Choice, Samples, fit_knn, fit_seeds, predict, predict_knn
from tdsm.classification.rows import ROWS, Row
from tdsm.classification.scores import scores
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment
from tdsm.decomposition import missing_space
from tdsm.features.extract import extract
from tdsm.features.store import open_store
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField, count_parameters, load_strictly
from tdsm.pipeline.config import RunConfig
from tdsm.training.reconstruction import reconstruction_quality

CHOICE, WEIGHTS, RESULTS, ROWS_FOLDER = "choice.json", "model.safetensors", "results", "rows"
QUALITY = "quality.json"


@dataclass(frozen=True)
class Run:
    """What every stage of a run needs: where it is, its settings, its data, its trained field."""

    path: Path
    config: RunConfig
    data: Data
    field: NeuralField

    @property
    def device(self) -> str:
        """Where the field and its heads compute."""
        return str(next(self.field.parameters()).device)


def new_field(config: FieldConfig, channels: int, seed: int) -> NeuralField:
    """Make the field that a run starts from: weights by the seed, channels by the data."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "field"))
        return NeuralField(config.model_copy(update={"channels": channels}))


def chosen_rows(names: Iterable[str]) -> dict[str, Row]:
    """Return rows by name, all of them for no names; raise `UsageError` for an unknown one."""
    names = tuple(names) or tuple(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        raise UsageError(f"rows: unknown {', '.join(unknown)}; expected some of {', '.join(ROWS)}.")
    return {name: ROWS[name] for name in names}


def fit_rows(run: Run, say: Callable[[str], None]) -> None:
    """Fit every row that is not there yet and keep it under rows/NAME."""
    for name, row in chosen_rows(run.config.probe.rows).items():
        folder = run.path / ROWS_FOLDER / name
        if folder.is_dir():
            io.verify_folder(folder)
            continue
        train, validation = samples(run, row, "train"), samples(run, row, "validation")
        began = time.monotonic()
        choices = _fit(run, row, train, validation)
        seconds = time.monotonic() - began
        io.write_folder(folder, partial(_write_choices, choices=choices, seconds=seconds))
        say(f"{name}: validation {100 * fmean(choice.accuracy for choice in choices):.1f} %, {seconds:.1f} s")


def score_rows(run: Run) -> list[dict]:
    """Score every fitted row on the test split, once a seed, and return the table; accuracies are means over seeds."""
    table = []
    for name, row in chosen_rows(run.config.probe.rows).items():
        result = run.path / RESULTS / f"{name}.json"
        if not result.exists():
            predicted, choice = _predict_test(run, name, row)
            tensors = {"ids": run.data.test.ids, "predicted": predicted.squeeze(0)}
            io.write_tensors(result.with_suffix(".safetensors"), tensors)
            entry: dict[str, Any] = {"name": name, "role": row.role, "features": row.features, "meaning": row.meaning}
            entry |= {"head": row.head.pool if row.head else "knn"} | scores(
                predicted, run.data.test.labels, len(run.data.test.classes)
            )
            entry |= {"validation_accuracy": fmean(fit["validation_accuracy"] for fit in _fits(choice))}
            entry |= {key: choice[key] for key in ("settings", "parameters", "seconds")}
            io.write_json(result, entry)
        table.append(io.read_json(result))
    io.write_json(run.path / "table.json", table)
    return table


def reconstruction_of(run: Run) -> dict:
    """Return mean and deviation of the PSNR of a run's field on test images, measured once."""
    if not (run.path / QUALITY).exists():
        io.write_json(run.path / QUALITY, reconstruction_quality(run.field, run.data.test))
    return io.read_json(run.path / QUALITY)


def read_predictions(path: Path, name: str) -> Int[Tensor, "seeds samples"]:
    """Return the classes that every seed of a scored row gave the test samples, in their order."""
    return torch.atleast_2d(io.read_tensors(path / RESULTS / f"{name}.safetensors")["predicted"])


def samples(run: Run, row: Row, split: str) -> Samples:
    """Return a row's features of one split, extracted where they are not stored yet.

    Only training features may hold augmented views; validation and test are the images as they are.
    """
    images: ImageSet = getattr(run.data, split)
    field = run.field if row.is_trained else untrained_field(run)
    root = run.path / "features" / ("trained" if row.is_trained else "untrained")
    folders = [root / split]
    extract(field, images, run.config.maps, root / split)
    if split == "train":
        for view in range(1, run.config.probe.views + 1):
            change = partial(augment, config=run.config.probe.augment, seed=run.config.seed, epoch=view)
            folder = root / f"train-view{view}"
            extract(field, images, run.config.maps, folder, change)
            folders.append(folder)
    features = open_store(folders, len(images), row.features)
    return Samples(features, images.labels.repeat(len(folders)))


def untrained_field(run: Run) -> NeuralField:
    """Return the run's field as it was before any training."""
    config = run.field.config
    return new_field(config, config.channels, run.config.seed).to(run.device).eval()


def notes(run: Run) -> list[str]:
    """List, in plain sentences, what a reader of the run's numbers must know."""
    method = run.config.maps.method
    words = missing_space(run.field) if method == "solo" else f"The maps of the tdsm rows show the method {method!r}."
    return [*run.data.notes, *(sentence for sentence in (words, _seed_words(run.config.probe.seeds)) if sentence)]


def _seed_words(seeds: int) -> str | None:
    if seeds == 1:
        return None
    return (
        f"Accuracies of heads are means over {seeds} seeds, deviations those of seeds, in points; intervals hold the "
        "sampling of images and of seeds. k-NN has no seed."
    )


def _fit(run: Run, row: Row, train: Samples, validation: Samples) -> list[Choice]:
    """Fit a row once a seed; k-NN has none and is fitted once."""
    classes, probe = len(run.data.train.classes), run.config.probe
    if row.head is None:
        return [fit_knn(train, validation, classes, probe)]
    return fit_seeds(row.head, train, validation, classes, probe, run.config.seed, run.device)


def _write_choices(folder: Path, choices: list[Choice], seconds: float) -> None:
    fits = [{"validation_accuracy": choice.accuracy, "settings": choice.settings} for choice in choices]
    entry: dict[str, Any] = {**fits[0], "seconds": seconds, "parameters": 0}
    for number, choice in enumerate(choices):
        if (classifier := choice.classifier) is not None:
            entry |= {"parameters": count_parameters(classifier), "head": classifier.config.model_dump()}
            io.write_tensors(folder / _weights(number), classifier.state_dict())
    io.write_json(folder / CHOICE, entry | ({"further": fits[1:]} if fits[1:] else {}))


def _fits(choice: dict) -> list[dict]:
    """Return what validation chose for every seed, of the content of a choice.json."""
    return [choice, *choice.get("further", [])]


def _weights(number: int) -> str:
    return f"seed-{number}.safetensors" if number else WEIGHTS


def _predict_test(run: Run, name: str, row: Row) -> tuple[Int[Tensor, "seeds samples"], dict]:
    folder = run.path / ROWS_FOLDER / name
    if not folder.is_dir():
        raise CheckpointError(f"{run.path}: row {name} is not fitted yet. First: tdsm classify {run.path}")
    io.verify_folder(folder)
    choice = io.read_json(folder / CHOICE)
    test, classes = samples(run, row, "test"), len(run.data.train.classes)
    if row.head is None:
        settings = choice["settings"]
        train = samples(run, row, "train")
        voted = predict_knn(test.features, train, classes, settings["neighbours"], settings["temperature"])
        return voted[None], choice
    head = HeadConfig.model_validate(choice["head"])
    height, width, maps = test.features.shape[1:]
    classifier, predicted = make_head(head, maps, classes, (height, width)), []
    for number in range(len(_fits(choice))):
        load_strictly(classifier, io.read_tensors(folder / _weights(number)), where=str(folder))
        predicted.append(predict(classifier, test.features, run.device))
    return torch.stack(predicted), choice
