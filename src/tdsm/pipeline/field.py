"""The field of a run: where it starts, how it is trained and kept, and how it is found again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tdsm.base import io
from tdsm.base.device import resolve_device
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.randomness import derive_seed
from tdsm.base.settings import differences
from tdsm.data import Data
from tdsm.features.extract import fingerprint_field
from tdsm.models.config import FieldConfig
from tdsm.models.field import NeuralField
from tdsm.models.load import FIELD_FOLDER, load_field
from tdsm.models.weights import CONFIG_FILE, WEIGHTS_FILE
from tdsm.pipeline import link
from tdsm.pipeline.config import RunConfig
from tdsm.training import processes
from tdsm.training.config import RESUMABLE, TrainConfig
from tdsm.training.reconstruction import train_field

CURVES = "curves.json"
HOLDS = (CONFIG_FILE, WEIGHTS_FILE, CURVES)


def new_field(config: FieldConfig, seed: int) -> NeuralField:
    """Make a field whose weights are drawn by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "field"))
        return NeuralField(config)


def initial_field(config: RunConfig, channels: int) -> NeuralField:
    """Return the field a run starts from: the one of `init`, or a new one for the data's channels."""
    if config.init is None:
        return new_field(config.field.model_copy(update={"channels": channels}), config.seed)
    heads = dict(zip(("cross_heads", "self_heads"), config.init_heads, strict=True))
    field = load_field(config.init, **(heads if Path(config.init).is_file() else {}))
    if field.config.channels != channels:
        raise UsageError(
            f"init: the field at {config.init} has {field.config.channels} channels, the data {channels}. "
            "Set --data.channels grey or rgb."
        )
    return field


def origin(field: NeuralField, data: Data, config: TrainConfig, seed: int, *, is_given: bool) -> dict[str, Any]:
    """Name all that decides a trained field.

    Args:
        field: As it is before training.
        data: What it is trained on and judged by.
        config: How it is trained.
        seed: Of every draw.
        is_given: Whether the field's weights come from elsewhere than the seed.
    """
    return {
        "field": field.config.model_dump(mode="json"),
        "init": fingerprint_field(field) if is_given else None,
        "seed": seed,
        "data": {"train": data.train.fingerprint(), "validation": data.validation.fingerprint()},
        "train": config.model_dump(mode="json"),
    }


def train_and_keep(
    path: Path, field: NeuralField, data: Data, config: TrainConfig, seed: int, *, is_given: bool, device: str
) -> NeuralField:
    """Train a field, from where that stopped, and keep it in `path`/field; one that is there already is loaded.

    Every process that has joined calls it; the first one writes.
    """
    made_from = origin(field, data, config, seed, is_given=is_given)
    if link.fault(path / FIELD_FOLDER, made_from, holds=HOLDS) is None:
        return load_field(path).to(resolve_device(device))
    field = field.to(resolve_device(device))
    history = train_field(
        field, data, config, seed, path, made_from | {"train": config.model_dump(mode="json", exclude=set(RESUMABLE))}
    )
    if processes.is_first():

        def fill(folder: Path) -> None:
            field.write(folder)
            io.write_json(folder / CURVES, history)

        io.write_folder(path / FIELD_FOLDER, fill, made_from)
    processes.wait()
    return field.eval()


def require_trained(path: Path, config: RunConfig) -> None:
    """Refuse a run whose field is not trained to the end, damaged, or made with other settings than the run's.

    Raises:
        CheckpointError: It says which, and how to go on.
    """
    if not (path / FIELD_FOLDER).is_dir():
        raise CheckpointError(
            f"{path}: its field is not trained to the end. Continue: tdsm train --run {path} --resume"
        )
    made_from = io.verify_folder(path / FIELD_FOLDER, holds=HOLDS).made_from
    expected = {
        "field": config.field.model_dump(mode="json"),
        "seed": config.seed,
        "train": config.train.model_dump(mode="json"),
    }
    if changed := _changed(made_from, expected):
        raise CheckpointError(
            f"{path}: its settings were changed since its field was trained: {link.in_words(changed)}. Put them back, "
            f"or train on where that is allowed: tdsm train --run {path} --resume"
        )


def kept_field(path: Path, config: RunConfig, data: Data) -> NeuralField:
    """Load the trained field of a run; raise `CheckpointError` if it was trained on other data."""
    sets = {"data": {"train": data.train.fingerprint(), "validation": data.validation.fingerprint()}}
    if changed := _changed(io.read_manifest(path / FIELD_FOLDER).made_from, sets):
        raise CheckpointError(f"{path}: its field was trained on other data: {link.in_words(changed)}.")
    return load_field(path).to(resolve_device(config.device))


def _changed(made_from: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    known = {key: made_from.get(key) for key in expected}
    return differences(known, io.plain(dict(expected)))
