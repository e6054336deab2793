"""List the images below a folder: what is no image is counted, what leads outside is refused."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ENDINGS: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
ENDINGS += (".ppm", ".pgm", ".pbm", ".pnm")
# Pictures no decoder here reads: to be reported as such, not to be passed over.
OTHER_PICTURES: tuple[str, ...] = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".j2k",
    ".svg",
    ".psd",
    ".eps",
    ".ico",
    ".tga",
    ".exr",
)
OTHER_PICTURES += (".hdr", ".dng", ".cr2", ".nef", ".arw", ".dcm")
JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "lost+found")
LABEL_TABLES = ("metadata.csv", "metadata.jsonl")
NOT_INSIDE = "not a file inside the data folder (a link?)"


@dataclass
class Found:
    """Paths from the root, with slashes: images, folders, tables; how many were ignored; (path, reason) refused."""

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)  # that may say what the images beside them show
    ignored: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def listed(self) -> str:
        """Count what was ignored, by kind."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items())) or "nothing"

    def notes(self) -> tuple[str, ...]:
        """Say what was ignored."""
        total = self.ignored.total()
        return (f"{total} files that are no images were ignored: {self.listed()}.",) if total else ()


def visible_files(root: Path, ending: str = "") -> list[Path]:
    """List the files below a folder that are not hidden and whose names end so, in any case."""
    found = (path for path in root.rglob("*") if path.name.lower().endswith(ending) and path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is to be read as an image; one without an ending is.

    >>> is_image("a.PNG"), is_image("a"), is_image("2024.01.31"), is_image("a.txt"), is_image("Thumbs.db")
    (True, True, True, False, False)
    """
    return name.lower() not in JUNK and _ending(name) in ("", *ENDINGS, *OTHER_PICTURES)


def _ending(name: str) -> str:
    match = re.search(r".(\.[a-z][a-z0-9]{0,11})$", name.lower())
    return match[1] if match else ""


def walk(root: Path, *, follow_links: bool) -> Found:
    """List what lies below a folder. Hidden files and folders, and what systems leave behind, are ignored.

    Links to files inside the root are read. Others, and what is neither file nor folder, are refused, unless links
    are to be followed; then each folder is entered once.
    """
    found, entered = Found(), {os.path.realpath(root)}
    pending = [""]
    while pending:
        place = pending.pop()
        for entry in _entries(found, root, place):
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                found.ignored["hidden" if entry.name.startswith(".") else entry.name] += 1
            elif _can(entry.is_dir, follow_symlinks=follow_links):
                if entry.is_symlink() and (target := os.path.realpath(entry.path)) in entered:
                    found.refused.append((path, f"a link to a folder that is read already ({target})"))
                    continue
                entered.add(os.path.realpath(entry.path))
                found.folders.append(path)
                pending.append(path)
            else:
                _sort_file(found, entry, path, root, follow_links)
    return found


def _entries(found: Found, root: Path, place: str) -> list[os.DirEntry[str]]:
    """List a folder by name; one that cannot be listed is refused."""
    try:
        return sorted(os.scandir(root / place), key=lambda entry: entry.name)
    except OSError as error:
        found.refused.append((place or ".", f"cannot be read ({error.strerror})"))
        return []


def _can(question: Callable[..., bool], **options: bool) -> bool:
    """Answer a question about an entry; none that leads nowhere, such as a link to itself, is anything."""
    try:
        return question(**options)
    except OSError:
        return False


def _sort_file(found: Found, entry: os.DirEntry[str], path: str, root: Path, follow_links: bool) -> None:
    is_table = entry.name.lower() in LABEL_TABLES
    if not is_table and not is_image(entry.name):
        found.ignored[_ending(entry.name)] += 1
    elif not _can(entry.is_file) or (entry.is_symlink() and not follow_links and not _is_inside(entry.path, root)):
        found.refused.append((path, NOT_INSIDE))
    else:
        (found.tables if is_table else found.images).append(path)


def _is_inside(path: str, root: Path) -> bool:
    return Path(path).resolve().is_relative_to(root.resolve())
