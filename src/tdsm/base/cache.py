"""The folder in which this user keeps what is slow to make: `$XDG_CACHE_HOME/tdsm`, else `~/.cache/tdsm`.

It must be this user's and closed to all others: whoever could write there could change what is run or read.
"""

import os
import stat
from pathlib import Path


def cache_folder() -> Path:
    """Return this user's cache folder, made if it is missing; raise `OSError` if anyone else could write there."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parent.mkdir(parents=True, exist_ok=True)
    return private_folder(parent / "tdsm")


def private_folder(folder: Path) -> Path:
    """Return a folder that only this user can write to, made if it is missing.

    Raises:
        OSError: If another user owns it or could write there.
    """
    if not hasattr(os, "geteuid"):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        raise OSError(f"{parent} can be written by every user: run chmod o-w {parent}")
    folder.mkdir(mode=0o700, exist_ok=True)
    check_own(folder)
    folder.chmod(0o700)
    return folder


def check_own(path: Path) -> None:
    """Raise `OSError` unless a file or folder is this user's, no link, and closed to others' writing."""
    seen = path.lstat()
    if stat.S_ISLNK(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        raise OSError(f"{path} is a link, or another user owns it or can write there; remove it")
