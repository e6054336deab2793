"""Describe this machine, and a field wherever it is kept."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from tdsm.base.environment import describe_environment
from tdsm.models.load import FIELD_FOLDER, load_field
from tdsm.models.weights import WEIGHTS_FILE, count_parameters
from tdsm.pipeline.findings import FOLDER
from tdsm.pipeline.folder import CONFIG, read_config
from tdsm.pipeline.rows import ROWS_FOLDER, SCORES_FOLDER


def describe_machine() -> str:
    """Return versions and what this machine can do, in lines of text."""
    facts = describe_environment()
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in facts["versions"].items())
    lines = [
        f"python     {facts['python']} on {facts['system']}",
        f"packages   {versions}",
        f"processor  {facts['processor']}, {facts['threads']} threads",
        f"gpus       {', '.join(facts['gpus']) or 'none that torch can use'}",
        f"compiler   {shutil.which('c++') or shutil.which('g++') or 'none: exact decoding runs eagerly'}",
    ]
    if (problem := torchvision_problem()) is not None:
        lines.append(f"warning    {problem}")
    return "\n".join(lines)


def torchvision_problem() -> str | None:
    """Say what is wrong when a torchvision built for another torch is installed; None if all is well.

    Such a pair makes transformers fail at import, far from the cause.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # whatever it raises is the finding
        return f"the torchvision installed here does not fit torch ({error}). Uninstall it: pip uninstall torchvision"
    return None


def describe(path: Path) -> str:
    """Return what is at a path, in lines of text: how far a run has come, and its field if there is one."""
    if not (path / CONFIG).is_file() or (path / WEIGHTS_FILE).is_file():
        return describe_field(path)
    progress = describe_progress(path)
    return f"{progress}\n\n{describe_field(path)}" if (path / FIELD_FOLDER).is_dir() else progress


def describe_progress(path: Path) -> str:
    """Return how far a run has come and what comes next, in lines of text, without reading its data."""
    config, is_trained = read_config(path), (path / FIELD_FOLDER).is_dir()
    fitted, scored = (
        [folder.name for folder in sorted((path / name).glob("*")) if folder.is_dir()]
        for name in (ROWS_FOLDER, SCORES_FOLDER)
    )
    kept = max((int(folder.name.removeprefix("step-")) for folder in path.glob("checkpoints/step-*")), default=0)
    of_all = f"{kept} of {config.train.steps} steps are kept"
    asked = sorted(folder.name for folder in (path / FOLDER).glob("*") if folder.is_dir())
    follows = [
        ("train", is_trained),
        ("classify", bool(fitted)),
        ("evaluate", bool(scored)),
        ("report", (path / "report.html").is_file()),
    ]
    missing = next((verb for verb, is_done in follows if not is_done), None)
    how = f"tdsm train --run {path} --resume" if missing == "train" else f"tdsm {missing} {path}"
    lines = [
        f"run        {path}",
        f"data       {config.data.source}",
        f"field      {'trained' if is_trained else f'in training, {of_all}'}",
        f"rows       {f'{len(fitted)} fitted, {len(scored)} scored' if fitted else 'none fitted'}",
        *([f"asked      {', '.join(asked)}"] if asked else []),
        *([f"next       {how}"] if missing else [f"report     {path / 'report.html'}"]),
    ]
    return "\n".join(lines)


def describe_field(path: Path) -> str:
    """Return a field's size and config, in lines of text."""
    field = load_field(path)
    size = f"{field.config.num_tokens} tokens × {field.config.widths[-1]}, decoder width {field.config.query_dim}"
    config = "\n".join(f"  {name}: {value}" for name, value in field.config.model_dump().items())
    return f"{path}\n{count_parameters(field):,} parameters, {size}\n{config}"
