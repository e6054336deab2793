"""A run's folder: its whole config, where and with what it ran, its checkpoints and results.

config.json        every setting, defaults included; a run can be started again from it
environment.json   versions, machine and command
field/             the trained field
checkpoints/       the two newest states of a training under way
features/          stored tokens and maps
rows/NAME/         one head or baseline: its weights, its choice on validation, its score on test
table.md, table.json, report.html, figures/
"""

import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from tdsm import io
from tdsm.errors import CheckpointError, UsageError
from tdsm.settings import RunConfig

CONFIG, ENVIRONMENT = "config.json", "environment.json"
PACKAGES = ("tdsm", "torch", "numpy", "scikit-learn", "scipy", "einops", "safetensors", "datasets", "pillow")


def create_run(path: Path, config: RunConfig, *, resume: bool) -> Path:
    """Make a run folder, or take up one that was made with the same config.

    Raises:
        UsageError: If the folder exists and `resume` is not set, or it was made with other settings.
    """
    path = Path(path)
    if path.is_file():
        raise UsageError(f"{path}: this is a file, expected a folder or none yet. Choose another --run.")
    if (path / CONFIG).exists():
        before = read_config(path)
        if not resume:
            raise UsageError(f"{path}: this run exists. Continue it with --resume, or choose another --run.")
        if changed := differences(before.model_dump(), config.model_dump()):
            raise UsageError(
                f"{path}: this run was started with other settings: {'; '.join(changed)}. "
                "Leave them as they were, or choose another --run."
            )
        return path
    if path.exists() and any(file.name != ENVIRONMENT and file.suffix != ".tmp" for file in path.iterdir()):
        raise UsageError(f"{path}: the folder is not empty and holds no run. Choose another --run.")
    io.write_json(path / ENVIRONMENT, describe_environment())
    io.write_json(path / CONFIG, config.model_dump(mode="json"))
    return path


def keep_settings(folder: Path, settings: dict) -> None:
    """Note with what settings a folder's results are made; raise `UsageError` if it holds those of others."""
    file = folder / "settings.json"
    if not file.exists():
        io.write_json(file, settings)
    elif changed := differences(io.read_json(file), settings):
        raise UsageError(
            f"{folder}: started with other settings: {'; '.join(changed)}. Use the same, or remove the folder to start "
            "anew."
        )


def read_config(path: Path) -> RunConfig:
    """Read the config of a run folder; raise `CheckpointError` when it is not one."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{path}: no run here ({CONFIG} is missing). Make one with `tdsm train` or `tdsm demo`.")
    try:
        return RunConfig.model_validate(io.read_json(file))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{file}: not the config of a run of this version. {wrong}.") from None


def differences(before: dict, after: dict, prefix: str = "") -> list[str]:
    """List the entries in which two nested dictionaries differ, as `name: before -> after`.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 -> 3']
    """
    changed = []
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(f"{prefix}{key}: {old} -> {new}")
    return sorted(changed)


def describe_environment() -> dict:
    """Return versions, machine and command line, as JSON can hold them."""
    import torch

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(["tdsm", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions,
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} logical cores)" if names else platform.processor() or platform.machine()


def save_checkpoint(path: Path, step: int, fill: Callable[[Path], None], keep: int = 2) -> None:
    """Write the checkpoint of a step as one folder and remove all but the newest `keep`."""
    folder = Path(path) / "checkpoints"
    io.write_folder(folder / f"step-{step:08d}", fill)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(path: Path) -> Path | None:
    """Return the newest checkpoint that verifies against its hashes; warn of those passed over."""
    for folder in sorted((Path(path) / "checkpoints").glob("step-*"), reverse=True):
        try:
            io.verify_folder(folder)
            return folder
        except CheckpointError as error:
            warnings.warn(f"{error} Falling back to the checkpoint before it.", stacklevel=2)
    return None
