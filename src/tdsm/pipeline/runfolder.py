"""A run's folder: its whole config, where and with what it ran, its checkpoints and results.

config.json        every setting, defaults included; a run can be started again from it
environment.json   versions, machine and command
field/             the trained field
checkpoints/       the two newest states of a training under way
features/          stored tokens and maps
rows/NAME/         one head or baseline: its weights, its choice on validation, its score on test
table.md, table.json, report.html, figures/
"""

from pathlib import Path

from pydantic import ValidationError

from tdsm.base import io
from tdsm.base.environment import describe_environment
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.settings import differences
from tdsm.pipeline.config import RunConfig

CONFIG, ENVIRONMENT = "config.json", "environment.json"


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
