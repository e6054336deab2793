"""Describe this machine, and a field wherever it is kept."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from tdsm.base.environment import describe_environment
from tdsm.models.load import load_field
from tdsm.models.weights import count_parameters


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


def describe_field(path: Path) -> str:
    """Return a field's size and config, in lines of text."""
    field = load_field(path)
    size = f"{field.config.num_tokens} tokens × {field.config.widths[-1]}, decoder width {field.config.query_dim}"
    config = "\n".join(f"  {name}: {value}" for name, value in field.config.model_dump().items())
    return f"{path}\n{count_parameters(field):,} parameters, {size}\n{config}"
