"""From a preset and a YAML file to one checked `RunConfig`. Later ones win: defaults, preset, file, flags."""

import difflib
import reprlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tdsm.base.errors import UsageError
from tdsm.base.settings import expected
from tdsm.cli.presets import PRESETS
from tdsm.pipeline.config import RunConfig

MOST_BYTES = 2**20


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file can stand for any amount of data."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"an alias in line {mark.line + 1}; write the value out")
        return super().compose_node(parent, index)


def preset(name: str) -> RunConfig:
    """Return a named experiment's settings; raise `UsageError` for an unknown name."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Perhaps you meant {near[0]!r}." if near else ""
        raise UsageError(f"--preset {name}: unknown, expected one of {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]()


def read_yaml(path: Path, base: RunConfig) -> RunConfig:
    """Read settings from YAML on top of `base`; raise `UsageError` listing every wrong entry."""
    given = _parse(path)
    if not isinstance(given, dict):
        raise UsageError(f"--config {path}: expected settings by name, saw {type(given).__name__}.")
    try:
        return RunConfig.model_validate(_merge(base.model_dump(), given))
    except ValidationError as error:
        raise UsageError(f"--config {path}: {'; '.join(_explain(entry) for entry in error.errors())}") from None


def to_yaml(config: BaseModel) -> str:
    """Write settings as YAML that `read_yaml` takes back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            raise UsageError(f"--config {path}: {len(data)} bytes, expected settings of at most {MOST_BYTES}.")
        return _PlainLoader(data.decode("utf-8")).get_single_data() or {}
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"--config {path}: cannot be read as YAML ({error}).") from None


def _merge(base: dict, given: dict) -> dict:
    merged = dict(base)
    for key, value in given.items():
        old = base.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{where} is {reprlib.repr(error['input'])}: {expected(error)}."
    model: Any = RunConfig
    for part in error["loc"][:-1]:
        model = model.model_fields[part].annotation
    near = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1)
    hint = f"perhaps you meant {near[0]!r}" if near else f"expected one of {', '.join(model.model_fields)}"
    return f"{where}: unknown, {hint}."
