"""What all settings share: frozen, unknown keys refused, ranges stated. No torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tdsm.base.errors import UsageError
from tdsm.base.registry import Registry

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, eq=False)
class Choice:
    """Mark a setting as a name in a registry, read when a value is checked: `Annotated[str, Choice(HEADS)]`.

    The command line shows the names, and finds them here.
    """

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        try:
            return self.registry.check(name)
        except UsageError as error:
            raise PydanticCustomError("unknown_name", "{reason}", {"reason": str(error)}) from None


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
