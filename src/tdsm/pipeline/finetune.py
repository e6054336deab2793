"""Heads trained together with a run's field, a folder for each regime and seed.

regimes/NAME/seed-N/     result.json, predicted.safetensors, head.safetensors, field/
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from pydantic import ValidationError
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.randomness import derive_seed
from tdsm.classification.config import RegimeConfig
from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.probe import predict
from tdsm.classification.regimes import REGIMES, FieldClassifier, fit_regime
from tdsm.classification.scores import scores
from tdsm.features.extract import compute_features
from tdsm.models.weights import count_parameters
from tdsm.pipeline import link
from tdsm.pipeline.data import fingerprints
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import ROWS_FOLDER, TIMING, is_fitted, read_classifiers
from tdsm.pipeline.run import Run, chosen_rows
from tdsm.training import processes
from tdsm.training.reconstruction import reconstruction_quality

FOLDER, WORK = "regimes", "training"
RESULT, HEAD, PREDICTED = "result.json", "head.safetensors", "predicted.safetensors"
HOLDS = (RESULT, HEAD, PREDICTED)


def train_regime(run: Run, config: RegimeConfig, number: int) -> dict[str, Any]:
    """Train one seed of a regime from the run's field, or take up what was left; read test once.

    Every process that has joined calls it; the first one writes.

    Returns:
        What `classification.scores` says of the test split, validation accuracy, PSNR on test images in dB before and
        after, the history, and how often test was read.

    Raises:
        NonFiniteError: If the loss is not finite.
        UsageError: If the row to start from is none that has a head of the trained field.
        CheckpointError: If it is not fitted.
    """
    config = _settled(run, config)
    path, made_from = run.path / FOLDER / config.label / f"seed-{number}", regime_origin(run, config, number)
    if link.fault(path, made_from, holds=HOLDS) is not None:
        digest = hashlib.sha256(json.dumps(io.plain(made_from), sort_keys=True).encode()).hexdigest()[:12]
        work = run.path / WORK / f"{config.label}-{number}-{digest}"
        seed = derive_seed(run.config.seed, "regime", number)
        model, history = fit_regime(
            run.field,
            run.data,
            run.config.maps,
            config,
            seed,
            work,
            run.device,
            io.plain(made_from),
            _started(run, config, number),
        )
        predicted = predict(model, run.data.test, run.device)
        result = _result(run, config, number, model, history, predicted)
        if processes.is_first():
            _keep(run, path, made_from, model, result, predicted)
            shutil.rmtree(work, ignore_errors=True)
        processes.wait()
    return io.read_object(path / RESULT)


def regime_origin(run: Run, config: RegimeConfig, number: int) -> dict[str, Any]:
    """Name all that decides a seed of a regime."""
    return {
        "field": run.field_hash,
        "data": fingerprints(run.data),
        "maps": run.config.maps.model_dump(mode="json", exclude={"dtype", "batch_size"}),
        "regime": config.model_dump(mode="json", exclude={"seeds"}),
        "seed": {"run": run.config.seed, "number": number},
    } | ({"start": _row_of(run, config)} if config.start else {})


def regime_results(run: Run) -> tuple[list[dict[str, Any]], dict[str, Bool[Tensor, "seeds samples"]]]:
    """Return what every seed measured that was trained from what is there now, and where a regime's seeds are right."""
    results: list[dict[str, Any]] = []
    right: dict[str, list[Tensor]] = {}
    for folder in sorted((run.path / FOLDER).glob("*/seed-*")):
        if (reason := _fault(run, folder)) is not None:
            run.say(f"{folder.parent.name}, {folder.name}: left out, {reason}.")
            continue
        results.append(io.read_object(folder / RESULT))
        predicted = io.read_tensors(folder / PREDICTED)["predicted"]
        right.setdefault(folder.parent.name, []).append(predicted == run.data.test.labels)
    return results, {name: torch.stack(rows) for name, rows in right.items()}


def _fault(run: Run, folder: Path) -> str | None:
    """Say why a seed does not count, its own settings taken as they are."""
    try:
        settings = RegimeConfig.model_validate(io.read_manifest(folder).made_from["regime"])
    except (CheckpointError, KeyError, ValidationError) as error:
        return f"it is damaged: {str(error).splitlines()[0]}"
    number = int(folder.name.removeprefix("seed-"))
    try:
        made_from = regime_origin(run, settings, number)
    except CheckpointError:
        return f"{settings.start}, which it started from, is gone"
    return link.fault(folder, made_from, holds=HOLDS)


def _settled(run: Run, config: RegimeConfig) -> RegimeConfig:
    """Take features and head from the row that the head starts from, if there is one."""
    if config.start is None:
        return config
    row = chosen_rows([config.start])[config.start]
    if row.features is None or row.head is None or not row.is_trained:
        raise UsageError(f"--start {config.start}: this row has no head of the trained field. Name one that has.")
    if not is_fitted(run, config.start, row):
        raise CheckpointError(
            f"{run.path}: {config.start} is not fitted to what is there now. "
            f"First: tdsm classify {run.path} --probe.rows {config.start}"
        )
    return config.model_copy(update={"features": row.features, "head": row.head})


def _started(run: Run, config: RegimeConfig, number: int) -> TDSMClassifier | None:
    """Return the head of a seed of the row to start from; seeds are taken in turn."""
    if config.start is None:
        return None
    one = compute_features(run.field, run.data.train.floats([0]), [config.features], run.config.maps)
    _, height, width, maps = one[config.features].shape
    heads = list(read_classifiers(run, config.start, (height, width, maps)))
    return heads[number % len(heads)]


def _row_of(run: Run, config: RegimeConfig) -> dict[str, str]:
    """Name what the row to start from is."""
    return link.identity(io.read_manifest(run.path / ROWS_FOLDER / str(config.start)), without=[TIMING])


def _result(
    run: Run, config: RegimeConfig, number: int, model: FieldClassifier, history: list[dict], predicted: Tensor
) -> dict[str, Any]:
    best = max(history, key=lambda entry: entry["validation_accuracy"])
    before = reconstruction_of(run)["psnr"]
    learns = any(REGIMES[config.regime].phases)
    return scores(predicted[None], run.data.test.labels, len(run.data.test.classes)) | {
        "name": config.label,
        "regime": config.regime,
        "seed": number,
        "settings": config.model_dump(mode="json"),
        "validation_accuracy": best["validation_accuracy"],
        "epoch": best["epoch"],
        "psnr_before": before,
        "psnr_after": reconstruction_quality(model.field, run.data.test)["psnr"] if learns else before,
        "parameters": count_parameters(model),
        "history": history,
    }


def _keep(run: Run, path: Path, made_from: dict, model: FieldClassifier, result: dict, predicted: Tensor) -> None:
    def fill(folder: Path) -> None:
        (folder / "field").mkdir()
        model.field.write(folder / "field")
        io.write_tensors(folder / HEAD, model.head.state_dict())
        io.write_tensors(folder / PREDICTED, {"predicted": predicted})
        io.write_json(folder / RESULT, result)

    link.keep(path, made_from, fill, holds=HOLDS, say=run.say)
