"""A tiny run for the tests of the pipeline: seconds on one core, every stage of it real."""

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tdsm.cli.main import run_command
from tdsm.data import Data, load_data
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.run import Run
from tdsm.pipeline.stages import take_up, train

ROWS = ("tdsm-avg", "tdsm-knn", "majority", "pixels-linear", "pixels-knn", "tokens-avg", "untrained-tdsm-avg")
TINY: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 120, "max_test": 60},
    "field": {
        "mapping_dim": 4,
        "fourier_scale": 1.0,
        "widths": (8,),
        "num_latents": 4,
        "cross_heads": 2,
        "cross_head_dim": 4,
        "self_heads": 2,
        "self_head_dim": 4,
        "processor_depth": 1,
    },
    "train": {
        "steps": 8,
        "batch_size": 16,
        "warmup_steps": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
        "validation_images": 8,
    },
    "probe": {"epochs": 2, "rows": ROWS, "learning_rates": (1e-2,), "neighbours": (1, 5)},
}
RESULTS = ("scores/**/*", "rows/**/*", "table.*", "quality/*", "field/*", "data/*", "config.json", "environment.json")


def tiny(**changes: Any) -> RunConfig:
    """Return the tiny settings with some entries changed, each named as `part__entry` or `entry`."""
    settings = {name: dict(part) for name, part in TINY.items()}
    for name, value in changes.items():
        part, _, entry = name.rpartition("__")
        (settings.setdefault(part, {}) if part else settings)[entry] = value
    return RunConfig.model_validate(settings)


@functools.cache
def digits(seed: int = 0) -> Data:
    return load_data(tiny().data, seed)


def trained(path: Path, **changes: Any) -> Run:
    """Make a run with a trained field at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    return train(path, tiny(**changes), lambda words: None, resume=False)


def finished(path: Path) -> Run:
    """Take up a run that is there."""
    return take_up(path, lambda words: None)


def tdsm(*arguments: Any) -> int:
    """Run a command in this process and return its exit code."""
    try:
        return run_command([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(str(stop.code))


def unprinted(markdown: str, printed: str) -> set[str]:
    """Return the words of a Markdown text that a command did not print, however it set the text out."""
    said = {word for word in markdown.replace("\\", "").split() if word.strip("|:-#*")}
    return said - set(printed.replace("•", "-").split())


def write_yaml(path: Path, **changes: Any) -> Path:
    """Write the tiny settings as a file for --config."""
    path.write_text(yaml.safe_dump(tiny(**changes).model_dump(mode="json")))
    return path


@functools.cache
def _demo() -> tuple[tempfile.TemporaryDirectory, Path]:
    folder = tempfile.TemporaryDirectory(prefix="tdsm-demo-")  # removed when the process ends
    config = write_yaml(Path(folder.name) / "tiny.yaml")
    assert tdsm("demo", "--config", config, "--run", f"{folder.name}/run") == 0
    return folder, Path(folder.name) / "run"


def demo(path: Path) -> Path:
    """Copy a finished tiny demo to `path`; it is made once a process."""
    shutil.copytree(_demo()[1], path)
    return path


def content(path: Path, *patterns: str) -> dict[str, str]:
    """Hash the files below a folder that match, but for the list of commands: name -> SHA-256."""
    files = {file for pattern in patterns or ("**/*",) for file in path.glob(pattern) if file.is_file()}
    files -= {path / "commands.json"}
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def colour_arrays(path: Path, size: tuple[int, int] = (12, 10), count: int = 60) -> Path:
    """Write RGB images of three classes that differ in colour, as .npz."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = random.integers(0, 120, (count, *size, 3))
    images[np.arange(count), :, :, labels] += 120
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path
