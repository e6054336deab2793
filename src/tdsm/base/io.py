"""The one module that writes files: whole or not at all, hashed, and on disk when it returns.

A file is written beside its place under a temporary name, flushed, fsynced and renamed over it, then its
folder is fsynced. A crash leaves the old file or the new one, never half of one. The mode follows the umask.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tdsm.base.errors import CheckpointError

MANIFEST = "manifest.json"


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` to `path` atomically and return its SHA-256."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def write_text(path: Path, text: str) -> str:
    """Write UTF-8 text to `path` atomically and return its SHA-256."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> str:
    """Write `value` as readable JSON atomically and return its SHA-256. NaN and infinity are refused."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> str:
    """Write a dictionary of torch tensors as safetensors atomically and return its SHA-256."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(ready, metadata=metadata))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder aside with `fill(folder)`, add a manifest of hashes, and rename it to `path` at once.

    A folder that is already there is replaced; between the two renames a crash leaves it under `.NAME.old`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        entries = {str(p.relative_to(temporary)): {"size": p.stat().st_size, "sha256": file_hash(p)} for p in files}
        write_json(temporary / MANIFEST, entries)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def verify_folder(path: Path) -> None:
    """Check a folder written by `write_folder` against its manifest; raise `CheckpointError` naming the damage."""
    path = Path(path)
    entries = read_json(path / MANIFEST)
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path / MANIFEST}: expected a table of files, saw {type(entries).__name__}.")
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: its manifest names {name!r}, which is missing. Use another copy.")
        if entry != {"size": file.stat().st_size, "sha256": file_hash(file)}:
            raise CheckpointError(f"{file}: size or hash differ from the manifest; it is damaged. Use another copy.")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `CheckpointError` when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Was the run finished, and is the path right?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file on the CPU; raise `CheckpointError` when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}).") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
