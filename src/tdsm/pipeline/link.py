"""A part of a run is a folder that says what it was made from, and counts only while that is what is at hand."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.base.errors import CheckpointError
from tdsm.base.settings import differences

Say = Callable[[str], None]
MOST_WORDS = 4


def keep(
    path: Path,
    made_from: Mapping[str, Any],
    fill: Callable[[Path], None],
    *,
    holds: Iterable[str],
    say: Say,
) -> io.Manifest:
    """Return the manifest of a part made from exactly this; make it if it is not there, or is another.

    Args:
        path: Where the part stands or goes.
        made_from: All that decides its content, as JSON can hold it.
        fill: Makes it.
        holds: Files that must be in it.
        say: Told in one line why a part that is there is made anew.
    """
    reason = fault(path, made_from, holds=holds)
    if reason is None:
        return io.read_manifest(path)
    if path.exists():
        say(f"{path.name}: made anew, {reason}.")
    io.write_folder(path, fill, made_from)
    return io.read_manifest(path)


def fault(path: Path, made_from: Mapping[str, Any], *, holds: Iterable[str]) -> str | None:
    """Say why a part does not count: it is missing, damaged, or made from something else; None if it counts."""
    if not path.is_dir():
        return "it is missing"
    try:
        manifest = io.verify_folder(path, holds=holds)
    except CheckpointError as error:
        return f"it is damaged: {str(error).split(';')[0].rstrip('.')}"
    changed = differences(manifest.made_from, io.plain(dict(made_from)))
    return f"it was made from something else: {in_words(changed)}" if changed else None


def identity(manifest: io.Manifest, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return what a later part notes of the one it was made from: the hash of each file but those named."""
    return {name: entry["sha256"] for name, entry in manifest.files.items() if name not in set(without)}


def in_words(changed: list[str]) -> str:
    """Join differences, the first few of many, long values cut."""
    shown = [words if len(words) <= 120 else f"{words.split(':', 1)[0]} differs" for words in changed[:MOST_WORDS]]
    more = [f"{len(changed) - MOST_WORDS} more"] if len(changed) > MOST_WORDS else []
    return "; ".join([*shown, *more])
