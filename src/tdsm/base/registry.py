"""Things by name: what flags, YAML, tables and messages offer is read from here, and nothing else lists it.

An entry is an object, or "module:attribute", imported when it is first asked for: names cost no torch.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Generic, TypeVar, cast

from tdsm.base.errors import UsageError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order they are shown in.

    >>> colours = Registry("colour", {"red": 0xFF0000, "half turn": "math:pi"})
    >>> colours["half turn"]
    3.141592653589793
    >>> with colours.added("green", 0x00FF00):
    ...     list(colours)
    ['red', 'half turn', 'green']
    >>> colours["read"]
    Traceback (most recent call last):
    tdsm.base.errors.UsageError: unknown colour 'read', perhaps you meant 'red'; expected one of red, half turn.

    Args:
        what: One entry, in a word or two, as messages call it.
        entries: Objects, or where to import them from.
    """

    def __init__(self, what: str, entries: Mapping[str, Entry | str]):
        self.what = what
        self._entries = dict(entries)

    def __getitem__(self, name: object) -> Entry:
        """Return an entry; raise `UsageError` that names the nearest one and all there are."""
        name = self.check(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = cast(Entry, getattr(import_module(module), attribute))
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def check(self, name: object) -> str:
        """Return a name that stands here; raise `UsageError` for anything else."""
        if not isinstance(name, str) or name not in self._entries:
            hint = nearest(name, self) if isinstance(name, str) else ""
            raise UsageError(f"unknown {self.what} {name!r}{hint}; expected one of {', '.join(self)}.")
        return name

    @contextmanager
    def added(self, name: str, entry: Entry) -> Iterator[None]:
        """Offer one more entry for as long as the context lasts."""
        if name in self:
            raise UsageError(f"there is a {self.what} {name!r} already; give the new one another name.")
        self._entries[name] = entry
        try:
            yield
        finally:
            del self._entries[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", perhaps you meant X" for the known name nearest to a wrong one, or nothing if none is near.

    >>> nearest("additve", ["solo", "additive"])
    ", perhaps you meant 'additive'"
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f", perhaps you meant {near[0]!r}" if near else ""
