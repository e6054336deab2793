"""What all settings share: frozen, unknown keys refused, ranges stated. No torch, so that `--help` is quick."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
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


EXPECTED = {  # what pydantic calls it -> what a person is told
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "none_required": "nothing",
}
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "entries by name",
    "model": "entries by name",
}


def expected(error: Mapping[str, Any]) -> str:
    """Say what was expected where pydantic found something else.

    >>> from pydantic import TypeAdapter, ValidationError
    >>> def words(kind, value):
    ...     try:
    ...         TypeAdapter(kind).validate_python(value)
    ...     except ValidationError as error:
    ...         return expected(error.errors()[0])
    >>> words(Positive, 0), words(int, "x"), words(Share, 1.5)
    ('expected at least 1', 'expected a whole number', 'expected at most 1.0')
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("missing", "extra_forbidden"):
        return "it is missing" if kind == "missing" else "unknown"
    known = EXPECTED.get(kind) or KINDS.get(kind.split("_")[0])
    return error["msg"] if known is None else f"expected {known.format(**context)}"


def wrong_entries(error: ValidationError, without: str = "") -> str:
    """List what is wrong, entry by entry: its name, what it is, what was expected."""
    said = (_wrong(entry, without) for entry in error.errors())
    return "; ".join(dict.fromkeys(said))


def _wrong(error: Mapping[str, Any], without: str) -> str:
    where = ".".join(str(part) for part in error["loc"] if str(part) != without) or "options"
    is_nothing = error["type"] == "missing" or error["input"] in ((), [])
    seen = "" if is_nothing else f" is {reprlib.repr(error['input'])}"
    return f"{where}{seen}: {expected(error)}"


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
