"""The stages of a run, each taking up what the one before left in the run folder."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError, ResourceError, UsageError
from tdsm.base.progress import track
from tdsm.classification.evaluate import (
    QUALITY,
    Run,
    chosen_rows,
    fit_rows,
    new_field,
    notes,
    reconstruction_of,
    score_rows,
)
from tdsm.data import Data, load_data
from tdsm.data.augment import check_augment
from tdsm.decomposition import check_method
from tdsm.decomposition.reduce import num_maps
from tdsm.decomposition.select import parse_selection, select_tokens
from tdsm.models.field import CONFIG_FILE, NeuralField, count_parameters
from tdsm.models.load import FIELD_FOLDER, load_field
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.runfolder import CONFIG, read_config
from tdsm.training import processes
from tdsm.training.reconstruction import check_training, measure_psnr, train_field

HISTORY = "history.json"


def load(config: RunConfig) -> Data:
    """Load the data of a run."""
    return load_data(config.data, config.seed, progress=lambda items, title: track(items, title, unit="images"))


def check(config: RunConfig, data: Data) -> None:
    """Refuse, before anything is written, what a stage of the run could not use.

    Raises:
        TdsmError: The error that the stage would end with.
    """
    device_of(config)
    chosen_rows(config.probe.rows)
    channels, *size = data.train.images.shape[1:]
    field = initial_field(config, channels)
    select_tokens(field.config.num_tokens, parse_selection(config.maps.selection))
    check_method(field, config.maps.method)
    check_training(field, data.train, config.train)
    if config.probe.views:
        check_augment(config.probe.augment, *size)


def train(path: Path, data: Data) -> Run:
    """Train the field of a run, from where it stopped, and keep it in field/; a finished one is loaded."""
    config = read_config(path)
    if (path / FIELD_FOLDER / CONFIG_FILE).exists():
        return finished(path, data)
    field = initial_field(config, data.train.images.shape[1]).to(device_of(config))
    history = train_field(field, data, config.train, config.seed, path)
    if processes.is_first():
        io.write_json(path / HISTORY, history)
        io.write_folder(path / FIELD_FOLDER, field.write)
    return Run(path, config, data, field.eval())


def finished(path: Path, data: Data | None = None) -> Run:
    """Take up a run whose field is trained; raise `CheckpointError` when it is not."""
    config = read_config(path)
    if not (path / FIELD_FOLDER / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{path}: its field is not trained to the end. Continue: tdsm train --run {path} --resume"
        )
    io.verify_folder(path / FIELD_FOLDER)
    field = load_field(path).to(device_of(config))
    return Run(path, config, data or load(config), field)


def classify(run: Run, say: Callable[[str], None]) -> None:
    """Fit every head and baseline, and choose on validation."""
    fit_rows(run, say)


def evaluate(run: Run, say: Callable[[str], None]) -> list[dict]:
    """Score everything on the test split, once; write table.md, table.json and quality.json."""
    from tdsm.pipeline.table import table_markdown, verdict

    table = score_rows(run)
    quality = reconstruction_of(run)
    words = [f"Reconstruction: {quality['psnr']:.2f} dB on {quality['n']} test images.", *notes(run)]
    parts = [verdict(table), "", table_markdown(table), "", *(f"- {sentence}" for sentence in words)]
    io.write_text(run.path / "table.md", "\n".join(parts) + "\n")
    say("\n".join(parts))
    return table


def report(run: Run) -> Path:
    """Write the page of a run that was evaluated; return its path."""
    from tdsm.report.gather import gather
    from tdsm.report.page import write_report

    if not (run.path / QUALITY).exists():
        raise CheckpointError(
            f"{run.path}: not evaluated yet. First: tdsm classify {run.path}; tdsm evaluate {run.path}"
        )
    table, quality = io.read_json(run.path / "table.json"), io.read_json(run.path / QUALITY)
    history = io.read_json(run.path / HISTORY)
    return write_report(run.path, gather(run, table, history, quality))


def validation_psnr(run: Run) -> float:
    """Return the mean PSNR of all validation images in dB."""
    return measure_psnr(run.field, run.data.validation)


def plan(config: RunConfig) -> str:
    """Say in words what a run would do: sizes of data, field and features, and the rows."""
    data = load(config)
    check(config, data)
    channels, height, width = data.train.images.shape[1:]
    field = initial_field(config, channels)
    tokens = len(select_tokens(field.config.num_tokens, parse_selection(config.maps.selection)))
    size = config.maps.size or (height, width)
    maps = num_maps(tokens, channels, config.maps.reduction)
    width = field.config.widths[-1]
    count = len(data.train) * (1 + config.probe.views) + len(data.validation) + len(data.test)
    gib = count * maps * size[0] * size[1] * 2 / 2**30
    return "\n".join(
        [
            f"data: {data.name}, {len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test "
            f"images of {channels} × {height} × {width}, {len(data.train.classes)} classes",
            f"field: {count_parameters(field):,} parameters, {field.config.num_tokens} tokens × {width}",
            f"training: {config.train.steps} steps of {config.train.batch_size} images on {device_of(config)}",
            f"maps: {size[0]} × {size[1]} × {maps}, {gib:.2f} GiB as float16 for all splits",
            f"rows: {', '.join(chosen_rows(config.probe.rows))}",
        ]
    )


def initial_field(config: RunConfig, channels: int) -> NeuralField:
    """Return the field a run starts from: the one of `init`, or a new one by the seed."""
    if config.init is None:
        return new_field(config.field, channels, config.seed)
    heads = dict(zip(("cross_heads", "self_heads"), config.init_heads, strict=True))
    field = load_field(config.init, **(heads if Path(config.init).is_file() else {}))
    if field.config.channels != channels:
        raise UsageError(
            f"init: the field at {config.init} has {field.config.channels} channels, the data {channels}. "
            "Set --data.channels grey or rgb."
        )
    return field


def device_of(config: RunConfig) -> torch.device:
    """Resolve a run's device; raise an error when it is not there."""
    name = config.device
    if name == "auto":
        return torch.device(f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ResourceError(f"--device {name}: torch sees {count} CUDA devices here. Use --device auto or cpu.")
    return device


def rewrite_config(path: Path, config: RunConfig) -> None:
    """Replace a run's settings before anything depends on the changed ones."""
    io.write_json(path / CONFIG, config.model_dump(mode="json"))
