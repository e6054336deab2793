"""A run's folder: made once, owned by one process at a time, its settings never changed without a trace.

    config.json          every setting, defaults included; a run can be started again from it
    changes.json         how settings were changed since, and when
    environment.json     versions, machine and command
    commands.json        every command that worked here, when, and for how long
    data/                a hash of every image, so that a change of the data is noticed
    field/               the trained field and how it went
    checkpoints/         the two newest states of a training under way
    features/            stored tokens and maps
    rows/NAME/           one head or baseline, as chosen on validation
    fitting/NAME/        seeds of one that are fitted already, while others are not
    scores/NAME/         its predictions and scores on test
    quality/ regimes/ analysis/ study-…/    what else was asked
    table.md table.json report.html figures/    for people; nothing reads them back

Every folder of these with a manifest says in it what it was made from.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from tdsm.base import io
from tdsm.base.environment import describe_environment
from tdsm.base.errors import CheckpointError, ResourceError, TdsmError, UsageError
from tdsm.base.settings import differences, wrong_entries
from tdsm.pipeline.config import RunConfig
from tdsm.training.config import RESUMABLE

CONFIG, CHANGES, ENVIRONMENT, LOCK = "config.json", "changes.json", "environment.json", ".lock"
COMMANDS = "commands.json"
WHERE = ("data.source", "data.cache", "data.memory_limit")
LATER = ("device", *WHERE, "maps", "probe")  # what is made from these checks them itself


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Own a run's folder alone, and clear away what killed writes left in it.

    Raises:
        ResourceError: If another process owns it.
        UsageError: If the folder holds something else than a run.
    """
    known = (path / CONFIG).exists() or not path.exists()
    if not known and any(not entry.name.startswith(".") and entry.name != ENVIRONMENT for entry in path.iterdir()):
        raise UsageError(f"{path}: the folder is not empty and holds no run. Choose another --run.")
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ResourceError(
            f"{path}: another process is working in this run. Wait until it is done, or use another run folder."
        ) from None
    try:
        io.sweep(path)
        yield
    finally:
        lock.release()
        if [entry.name for entry in path.iterdir()] == [LOCK]:  # nothing came of it
            (path / LOCK).unlink()
            for folder in new or [path]:
                folder.rmdir()


@contextmanager
def noted(path: Path, *, at_once: bool = True) -> Iterator[None]:
    """Note in a run's folder the command that works there, when it began, and in the end how long it took.

    The same command right after itself goes on where it stopped, and counts as one.

    Args:
        path: The run's folder.
        at_once: Also while it is at work; if not, a command that ends with an error of ours leaves no note.
    """
    earlier, now, began = read_commands(path), datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    entry: dict[str, Any] = {"command": shlex.join(["tdsm", *sys.argv[1:]]), "when": now, "seconds": 0.0}
    if earlier and earlier[-1]["command"] == entry["command"]:
        entry |= {key: earlier[-1][key] for key in ("when", "seconds")}
        earlier = earlier[:-1]
    if at_once:
        io.write_json(path / COMMANDS, [*earlier, entry | {"since": now}])
    is_refused = False
    try:
        yield
    except TdsmError:
        is_refused = True
        raise
    finally:
        if (at_once or not is_refused) and (path / CONFIG).exists():
            seconds = entry["seconds"] + time.monotonic() - began
            io.write_json(path / COMMANDS, [*earlier, entry | {"seconds": round(seconds, 1)}])


def read_commands(path: Path) -> list[dict]:
    """Return the commands noted in a run's folder; one that is at work has `since`, when it was taken up."""
    return io.read_json(path / COMMANDS) if (path / COMMANDS).exists() else []


def create_run(path: Path, config: RunConfig, *, resume: bool) -> None:
    """Make a run in a folder, or take up the one that is there.

    Settings that only extend or correct the training may change when a run is taken up, and the run notes it.

    Raises:
        UsageError: If a run is there and `resume` is not set, or it was started with other settings.
    """
    if (path / CONFIG).exists():
        if not resume:
            raise UsageError(f"{path}: this run exists. Continue it with --resume, or choose another --run.")
        rewrite_config(path, config, may_change=_may_change_on_resume)
        return
    from tdsm.decomposition.kernels.cpu import describe  # late: the command line reads configs without torch

    io.write_json(path / ENVIRONMENT, describe_environment() | {"kernel": describe()})
    io.write_json(path / CONFIG, config.model_dump(mode="json"))


def rewrite_config(path: Path, config: RunConfig, may_change: Callable[[str, object, object], bool]) -> None:
    """Change a run's settings where that is allowed, and note it.

    Raises:
        UsageError: If an entry differs that may not change.
    """
    before, after = read_config(path).model_dump(mode="json"), config.model_dump(mode="json")
    if not (changed := differences(before, after)):
        return
    old, new = _flat(before), _flat(after)
    refused = [words for words in changed if not may_change(key := words.split(":")[0], old.get(key), new.get(key))]
    if refused:
        raise UsageError(
            f"{path}: this run was started with other settings: {'; '.join(refused)}. "
            "Leave them as they were, or choose another --run."
        )
    history = io.read_json(path / CHANGES) if (path / CHANGES).exists() else []
    io.write_json(path / CHANGES, [*history, {"when": datetime.now(UTC).isoformat(), "changed": changed}])
    io.write_json(path / CONFIG, after)


def read_config(path: Path) -> RunConfig:
    """Read the config of a run folder; raise `CheckpointError` when it is not one."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{path}: no run here ({CONFIG} is missing). Make one with `tdsm train` or `tdsm demo`.")
    try:
        return RunConfig.model_validate(io.read_object(file))
    except ValidationError as error:
        raise CheckpointError(f"{file}: not the config of a run of this version. {wrong_entries(error)}.") from None


def is_later(key: str, *_: object) -> bool:
    """Tell whether a setting decides nothing before the maps."""
    return any(key == part or key.startswith(f"{part}.") for part in LATER)


def _may_change_on_resume(key: str, before: object, after: object) -> bool:
    rule = RESUMABLE.get(key.removeprefix("train.")) if key.startswith("train.") else None
    return is_later(key) or rule == "any" or (rule == "higher" and after > before)  # type: ignore[operator]


def _flat(settings: dict, prefix: str = "") -> dict[str, object]:
    """Name the entries of nested settings as `differences` does."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
