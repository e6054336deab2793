"""The rows of a run's table: each fitted and chosen on validation, then scored on test.

rows/NAME/     choice.json, timing.json, seed-0.safetensors … one a seed; k-NN has neither seeds nor weights
fitting/NAME/  the same of a row whose seeds are not all fitted yet, to go on from
scores/NAME/   score.json, predictions.safetensors: the classes every seed gave the test samples
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.base.progress import track
from tdsm.base.text import count_of
from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import TDSMClassifier, make_head
from tdsm.classification.probe import Choice, Samples, fit_head, fit_knn, fit_seeds, predict, predict_knn
from tdsm.classification.registry import HEADS
from tdsm.classification.rows import ROWS, Row, settings_of
from tdsm.classification.scores import majority, scores
from tdsm.features.kinds import FEATURES
from tdsm.features.store import FeatureRows
from tdsm.models.weights import count_parameters, load_strictly
from tdsm.pipeline import link
from tdsm.pipeline.run import Run, chosen_rows

ROWS_FOLDER, SCORES_FOLDER, FITTING = "rows", "scores", "fitting"
CHOICE, TIMING, SCORE, PREDICTIONS = "choice.json", "timing.json", "score.json", "predictions.safetensors"


def fit_rows(run: Run) -> None:
    """Fit every chosen row that is not there, made from what is at hand, and keep it under rows/NAME."""
    rows = chosen_rows(run.config.probe.rows)
    missing = {name: row for name, row in rows.items() if _fault(run, name, row) is not None}
    for split in ("train", "validation"):
        extract(run, missing, split)
    if missing:
        _warm_up(run)
    for name, row in missing.items():
        fill = partial(_fit_and_write, run=run, name=name, row=row)
        link.keep(run.path / ROWS_FOLDER / name, row_origin(run, row), fill, holds=[CHOICE], say=run.say)
    for name in rows:
        shutil.rmtree(run.path / FITTING / name, ignore_errors=True)


def score_rows(run: Run) -> list[dict]:
    """Score rows on the test split and return the table: the chosen ones, and others that were fitted before.

    Raises:
        CheckpointError: If a chosen row is not fitted.
    """
    chosen = chosen_rows(run.config.probe.rows)
    if absent := [name for name, row in chosen.items() if _fault(run, name, row) is not None]:
        raise CheckpointError(
            f"{run.path}: {_listed(absent)} not fitted to what is there now. First: tdsm classify {run.path}"
        )
    rows = {name: row for name, row in ROWS.items() if name in chosen or is_fitted(run, name, row)}
    stale = {name: row for name, row in rows.items() if not is_scored(run, name)}
    extract(run, stale, "test")
    return [_score(run, name, row) for name, row in track(rows.items(), "scoring", unit="rows")]


def scored_rows(run: Run) -> list[dict]:
    """Return the table as far as it was scored from what is there now.

    Raises:
        CheckpointError: If a chosen row is not scored.
    """
    there = [name for name in fitted_rows(run) if is_scored(run, name)]
    if absent := [name for name in chosen_rows(run.config.probe.rows) if name not in there]:
        raise CheckpointError(
            f"{run.path}: {_listed(absent)} not evaluated yet. "
            f"First: tdsm classify {run.path}; tdsm evaluate {run.path}"
        )
    return [_entry(run, name) for name in there]


def fitted_rows(run: Run) -> list[str]:
    """Name the rows that are fitted to what is there now."""
    return [name for name, row in ROWS.items() if is_fitted(run, name, row)]


def is_fitted(run: Run, name: str, row: Row) -> bool:
    """Tell whether a row is fitted to what is there now, as the run's settings have it."""
    return (run.path / ROWS_FOLDER / name).exists() and _fault(run, name, row) is None


def is_scored(run: Run, name: str) -> bool:
    """Tell whether a fitted row is scored, as it is fitted now."""
    return link.fault(*_score_link(run, name, ROWS[name]), holds=[SCORE, PREDICTIONS]) is None


def read_classifiers(run: Run, name: str, shape: tuple[int, int, int]) -> Iterator[TDSMClassifier]:
    """Read the classifiers of a fitted row, one a seed, for features of a shape (height, width, maps)."""
    return classifiers_in(run.path / ROWS_FOLDER / name, shape, len(run.data.train.classes))


def classifiers_in(folder: Path, shape: tuple[int, int, int], classes: int) -> Iterator[TDSMClassifier]:
    """Read the same from a row's folder alone."""
    height, width, maps = shape
    choice = io.read_object(folder / CHOICE)
    for number in range(len(choice["fits"])):
        classifier = make_head(HeadConfig.model_validate(choice["head"]), maps, classes, (height, width))
        load_strictly(classifier, io.read_tensors(folder / f"seed-{number}.safetensors"), where=str(folder))
        yield classifier


def extract(run: Run, rows: dict[str, Row], split: str) -> None:
    """Extract the features of several rows, those of one field in one pass."""
    for is_trained in (True, False):
        if names := {row.features for row in rows.values() if row.is_trained == is_trained and row.features}:
            for view in range(1 + (run.config.probe.views if split == "train" else 0)):
                run.features(split, is_trained=is_trained, view=view).extract(sorted(names))


def row_origin(run: Run, row: Row) -> dict[str, Any]:
    """Name all that decides a fitted row."""
    probe = run.config.probe.model_dump(mode="json")
    features = {split: _read(run, row, split) for split in ("train", "validation")}
    views = {"count": run.config.probe.views, "augment": probe["augment"]} if run.config.probe.views else None
    head = None if row.head is None else row.head.model_dump(mode="json")
    is_spatial = row.features is not None and FEATURES[row.features].is_spatial
    settings = {key: probe[key] for key in settings_of(row.reader, is_spatial)}
    return {"features": features, "views": views, "head": head, "probe": settings, "seed": run.config.seed}


def read_predictions(run: Run, name: str) -> Int[Tensor, "seeds samples"]:
    """Return the classes that every seed of a scored row gave the test samples, in their order."""
    return io.read_tensors(run.path / SCORES_FOLDER / name / PREDICTIONS)["predicted"]


def is_right(run: Run, name: str) -> Bool[Tensor, "seeds samples"]:
    """Tell where every seed of a scored row was right on test."""
    return read_predictions(run, name) == run.data.test.labels


def _read(run: Run, row: Row, split: str) -> dict[str, Any]:
    """Name all that decides what a row reads of a split."""
    if row.features is None:
        return {"data": run.images(split).fingerprint()}
    return run.features(split, is_trained=row.is_trained).made_from(row.features)


def _fault(run: Run, name: str, row: Row) -> str | None:
    return link.fault(run.path / ROWS_FOLDER / name, row_origin(run, row), holds=[CHOICE])


def _fit_and_write(folder: Path, run: Run, name: str, row: Row) -> None:
    """Fit a row and write it, seed by seed aside as well, so that one that is stopped goes on with the next seed."""
    samples = () if row.features is None else (run.samples(row, "train"), run.samples(row, "validation"))
    has_seeds = row.head is not None and not HEADS[row.head.kind].is_solved
    aside, made_from = run.path / FITTING / name, row_origin(run, row)
    made_from["probe"].pop("seeds", None)  # one asked for more of them, or fewer, goes on all the same
    done, seconds = _fitted_before(run, aside, made_from, *samples) if has_seeds else ([], 0.0)
    choices = list[Choice]()
    began = time.monotonic() - seconds
    for choice in _fit(run, row, done, *samples):
        choices.append(choice)
        seconds = time.monotonic() - began
        if has_seeds and len(done) < len(choices) < run.config.probe.seeds:
            io.write_folder(aside, partial(_write_choices, choices=choices, seconds=seconds), made_from)
    _write_choices(folder, choices, seconds)
    run.say(f"{name}: validation {100 * fmean(choice.accuracy for choice in choices):.1f} %, {seconds:.1f} s")


def _fitted_before(run: Run, aside: Path, made_from: dict[str, Any], *samples: Samples) -> tuple[list[Choice], float]:
    """Return the choices of the seeds that were fitted before the row was stopped, and the seconds they took."""
    if not aside.exists():
        return [], 0.0
    height, width, maps = samples[0].features.shape[1:]
    try:
        reason = link.fault(aside, made_from, holds=[CHOICE, TIMING])
        heads = [] if reason else list(classifiers_in(aside, (height, width, maps), len(run.data.train.classes)))
    except CheckpointError as error:
        reason = str(error).rstrip(".")
    if reason:
        run.say(f"{aside.name}: what was fitted before it was stopped is left, {reason}.")
        return [], 0.0
    fits = io.read_object(aside / CHOICE)["fits"]
    done = [Choice(fit["validation_accuracy"], fit["settings"], head) for fit, head in zip(fits, heads, strict=True)]
    done = done[: run.config.probe.seeds]
    run.say(f"{aside.name}: goes on after {count_of(len(done), 'seed')}.")
    return done, io.read_object(aside / TIMING)["seconds"]


def _fit(run: Run, row: Row, done: Sequence[Choice], *samples: Samples) -> Iterable[Choice]:
    """Fit a row to training and validation samples once a seed; what has no seed is fitted once."""
    classes, probe = len(run.data.train.classes), run.config.probe
    if row.features is None:
        labels = run.data.validation.labels
        said = majority(run.images("train").labels, len(labels))
        return [Choice((said == labels).double().mean().item(), {"class": int(said[0])}, None)]
    train, validation = samples
    if row.head is None:
        return [fit_knn(train, validation, classes, probe)]
    return fit_seeds(row.head, train, validation, classes, probe, run.config.seed, run.device, done)


def _warm_up(run: Run) -> None:
    """Fit a tiny head once, so that what is loaded at first use does not count in the first row's seconds."""
    few = torch.arange(8)
    samples = Samples(FeatureRows([torch.zeros(8, 1, 1, 2)]), run.data.train.labels[few])
    config = run.config.probe.model_copy(update={"epochs": 1})
    fit_head(HeadConfig(), samples, samples, len(run.data.train.classes), config, 0, run.device)


def _write_choices(folder: Path, choices: Sequence[Choice], seconds: float) -> None:
    fits = [{"validation_accuracy": choice.accuracy, "settings": choice.settings} for choice in choices]
    entry: dict[str, Any] = {"fits": fits, "parameters": 0, "head": None}
    for number, choice in enumerate(choices):
        if (classifier := choice.classifier) is not None:
            entry |= {"parameters": count_parameters(classifier), "head": classifier.config.model_dump(mode="json")}
            io.write_tensors(folder / f"seed-{number}.safetensors", classifier.state_dict())
    io.write_json(folder / CHOICE, entry)
    io.write_json(folder / TIMING, {"seconds": seconds})


def _score_link(run: Run, name: str, row: Row) -> tuple[Path, dict[str, Any]]:
    """Return where a row's scores are and what they are made from."""
    fitted = io.read_manifest(run.path / ROWS_FOLDER / name)
    made_from = {"row": name, "fitted": link.identity(fitted, without=[TIMING]), "test": _read(run, row, "test")}
    return run.path / SCORES_FOLDER / name, made_from


def _score(run: Run, name: str, row: Row) -> dict:
    path, made_from = _score_link(run, name, row)
    reads = _reads(path)

    def fill(folder: Path) -> None:
        fitted = run.path / ROWS_FOLDER / name
        choice = io.read_object(fitted / CHOICE)
        predicted = _predict(run, name, row, choice)
        io.write_tensors(folder / PREDICTIONS, {"ids": run.data.test.ids, "predicted": predicted})
        entry: dict[str, Any] = {"name": name, "role": row.role, "features": row.features or "none"}
        entry |= {"head": row.reader, "meaning": row.meaning, "parameters": choice["parameters"]}
        entry |= scores(predicted, run.data.test.labels, len(run.data.test.classes))
        entry |= {"validation_accuracy": fmean(fit["validation_accuracy"] for fit in choice["fits"])}
        entry |= {"settings": choice["fits"][0]["settings"], "test_reads": reads + 1}
        io.write_json(folder / SCORE, entry)

    link.keep(path, made_from, fill, holds=[SCORE, PREDICTIONS], say=run.say)
    return _entry(run, name)


def _entry(run: Run, name: str) -> dict:
    seconds = io.read_object(run.path / ROWS_FOLDER / name / TIMING)["seconds"]
    return io.read_object(run.path / SCORES_FOLDER / name / SCORE) | {"seconds": seconds}


def _reads(path: Path) -> int:
    """Count how often the test split was read for a row so far."""
    try:
        return int(io.read_object(path / SCORE)["test_reads"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return 0


def _predict(run: Run, name: str, row: Row, choice: dict) -> Int[Tensor, "seeds samples"]:
    if row.features is None:
        return majority(run.images("train").labels, len(run.data.test))[None]
    test, classes = run.samples(row, "test"), len(run.data.train.classes)
    if row.head is None:
        settings = choice["fits"][0]["settings"]
        train = run.samples(row, "train")
        return predict_knn(test.features, train, classes, settings["neighbours"], settings["temperature"])[None]
    classifiers = read_classifiers(run, name, tuple(test.features.shape[1:]))
    return torch.stack([predict(classifier, test.features, run.device) for classifier in classifiers])


def _listed(names: list[str]) -> str:
    return f"row {names[0]} is" if len(names) == 1 else f"rows {', '.join(names)} are"
