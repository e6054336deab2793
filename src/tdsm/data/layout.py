"""Tell by what lies in a folder which reader it is for, on this machine and in a snapshot of the hub alike."""

import os
from collections.abc import Callable
from pathlib import Path

from tdsm.base.errors import UsageError
from tdsm.data.config import DataConfig
from tdsm.data.folder import load_folder
from tdsm.data.idx import IDX, load_idx
from tdsm.data.parquet import load_parquet
from tdsm.data.saved import load_saved
from tdsm.data.source import Source
from tdsm.data.tars import load_tar
from tdsm.data.walk import is_image

FOLDERS: dict[str, Callable[[str, DataConfig], Source]] = {
    "folder": load_folder,
    "parquet": load_parquet,
    "tar": load_tar,
    "idx": load_idx,
    "disk": load_saved,
}


def layout(root: Path) -> str:
    """Return the kind of a folder: "disk", "parquet", "idx", "tar" or "folder", the first of these that is there.

    Raises:
        UsageError: If it holds both tar files and images, so that either may be meant.
    """
    if (root / "dataset_dict.json").is_file() or ((root / "state.json").is_file() and any(root.glob("*.arrow"))):
        return "disk"
    found = set()
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found |= {_kind(name) for name in files if not name.startswith(".")}
        if "parquet" in found:
            return "parquet"
    if {"tar", "folder"} <= found and "idx" not in found:
        raise UsageError(f"{root}: holds both tar files and images. Say which is meant: tar:{root} or folder:{root}.")
    return next((kind for kind in ("idx", "tar") if kind in found), "folder")


def _kind(name: str) -> str:
    if name.lower().endswith((".parquet", ".tar")):
        return name.lower().rpartition(".")[2]
    return "idx" if IDX.fullmatch(name) else "folder" if is_image(name) and "." in name else ""
