"""From a command line, a YAML file and a preset to one checked `RunConfig`.

Later ones win: the defaults, the preset, the file, the flags.
"""

import argparse
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tdsm.base.errors import UsageError
from tdsm.cli.presets import PRESETS
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.runfolder import CONFIG, read_config


def base_config(arguments: list[str], default_preset: str | None) -> RunConfig:
    """Return the settings that flags start from: those of `--preset NAME` and `--config FILE` in `arguments`.

    A run that is resumed starts from its own unless it is given others.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}.") from None
    is_given = known.preset is not None or known.config is not None
    if known.resume and known.run is not None and not is_given and (known.run / CONFIG).is_file():
        return read_config(known.run)
    name = known.preset or default_preset
    config = preset(name) if name is not None else RunConfig()
    return config if known.config is None else read_yaml(known.config, config)


def preset(name: str) -> RunConfig:
    """Return a named experiment's settings; raise `UsageError` for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"--preset {name}: unknown, expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]()


def read_yaml(path: Path, base: RunConfig) -> RunConfig:
    """Read settings from YAML on top of `base`; raise `UsageError` listing every wrong entry."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: cannot be read as YAML ({error}).") from None
    if not isinstance(given, dict):
        raise UsageError(f"--config {path}: expected settings by name, saw {type(given).__name__}.")
    try:
        return RunConfig.model_validate(_merge(base.model_dump(), given))
    except ValidationError as error:
        raise UsageError(f"--config {path}: {'; '.join(_explain(entry) for entry in error.errors())}") from None


def to_yaml(config: BaseModel) -> str:
    """Write settings as YAML that `read_yaml` takes back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _merge(base: dict, given: dict) -> dict:
    merged = dict(base)
    for key, value in given.items():
        old = base.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{where} is {error['input']!r}: {error['msg'].lower()}."
    model: Any = RunConfig
    for part in error["loc"][:-1]:
        model = model.model_fields[part].annotation
    near = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1)
    hint = f"perhaps you meant {near[0]!r}" if near else f"expected one of {', '.join(model.model_fields)}"
    return f"{where}: unknown, {hint}."
