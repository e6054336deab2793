"""The one module that writes files: whole or not at all, hashed, and on disk when it returns.

A file is written beside its place under a temporary name, flushed, fsynced and renamed over it, then its
folder is fsynced. A crash leaves the old file or the new one, never half of one. The mode follows the umask.

A folder that counts as a whole is built aside and renamed once. Its manifest holds the size and hash of every file,
what the folder was made from, and a seal, the hash of all that: a changed byte of any of them is noticed.

    {"files": {"model.safetensors": {"size": 1234, "sha256": "…"}}, "made_from": {…}, "seal": "…"}
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdsm.base.errors import CheckpointError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a folder holds and what it was made from."""

    files: dict[str, dict[str, Any]]  # size and sha256 by relative path
    made_from: dict[str, Any]
    seal: str


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` to `path` atomically and return its SHA-256."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    )  # of this machine and of others
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


def write_json_lines(path: Path, values: Iterable[Any]) -> str:
    """Write a line of JSON for each value, all of them anew, and return the file's SHA-256."""
    return write_text(path, "".join(json.dumps(value, allow_nan=False) + "\n" for value in values))


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> str:
    """Write a dictionary of torch tensors as safetensors atomically and return its SHA-256."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(ready, metadata=metadata))


def write_folder(path: Path, fill: Callable[[Path], None], made_from: Mapping[str, Any] | None = None) -> None:
    """Build a folder aside with `fill(folder)`, seal it by a manifest, and rename it to `path` at once.

    A folder that is already there is replaced; between the two renames a crash leaves it under `.NAME.old`.

    Args:
        path: Where the folder goes.
        fill: Writes its files.
        made_from: What the content depends on, as JSON can hold it; kept in the manifest.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        seal_folder(temporary, made_from or {})
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


def sweep(folder: Path) -> None:
    """Clear away what killed writes left anywhere below a folder, and put back what they had set aside.

    Nothing else may be writing there.
    """
    for old in Path(folder).rglob(".*.old"):
        place = old.with_name(old.name[1 : -len(".old")])
        if place.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, place)
    for temporary in Path(folder).rglob(".*.tmp"):
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a folder written by `write_folder`, and check its seal.

    Raises:
        CheckpointError: If it is missing, damaged, or no manifest.
    """
    file = Path(path) / MANIFEST
    content = read_object(file)
    if content.keys() != {"files", "made_from", "seal"} or not all(
        isinstance(content[k], dict) for k in list(content)[:2]
    ):
        raise CheckpointError(f"{file}: no manifest of this version. Make the folder anew.")
    if content["seal"] != _seal(content["files"], content["made_from"]):
        raise CheckpointError(f"{file}: its seal does not fit its content; it is damaged or was edited.")
    return Manifest(**content)


def verify_folder(path: Path, *, holds: Iterable[str] = ()) -> Manifest:
    """Check a folder written by `write_folder` against its manifest, and return that.

    Args:
        path: The folder.
        holds: Files that must be in it.

    Raises:
        CheckpointError: It names the damage.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if absent := sorted(set(holds) - manifest.files.keys()):
        raise CheckpointError(f"{path}: its manifest lacks {', '.join(absent)}. Use another copy.")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path}: its manifest names {name!r}, which is missing. Use another copy.")
        if entry != {"size": file.stat().st_size, "sha256": file_hash(file)}:
            raise CheckpointError(f"{file}: size or hash differ from the manifest; it is damaged. Use another copy.")
    return manifest


def plain(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples as lists, keys as text.

    >>> plain({"size": (16, 16), 1: None})
    {'size': [16, 16], '1': None}
    """
    return json.loads(json.dumps(value))


def seal_folder(folder: Path, made_from: Mapping[str, Any], hashes: Mapping[str, str] | None = None) -> None:
    """Write the manifest of all that is in a folder, which makes it whole.

    Args:
        folder: What is in it is complete.
        made_from: What the content depends on, as JSON can hold it.
        hashes: The SHA-256 of files whose hash is known, by their path from the folder; others are read.
    """
    known, own = hashes or {}, Path(folder) / MANIFEST
    files = {p.relative_to(folder).as_posix(): p for p in sorted(Path(folder).rglob("*")) if p.is_file() and p != own}
    entries = {n: {"size": p.stat().st_size, "sha256": known.get(n) or file_hash(p)} for n, p in files.items()}
    origin = plain(dict(made_from))
    write_json(own, {"files": entries, "made_from": origin, "seal": _seal(entries, origin)})


def _seal(files: dict, made_from: dict) -> str:
    return hashlib.sha256(json.dumps([files, made_from], sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file; raise `CheckpointError` when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Was the run finished, and is the path right?") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a table of names; raise `CheckpointError` when it does not."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a table of names, saw {type(value).__name__}.")
    return value


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file on the CPU; raise `CheckpointError` when it is missing or damaged."""
    from safetensors.torch import load_file

    return _from_safetensors(path, load_file)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header alone of a safetensors file: the shape of each tensor. Raises like `read_tensors`."""
    from safetensors import safe_open

    def shapes(path: Path) -> dict[str, tuple[int, ...]]:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    return _from_safetensors(path, shapes)


def _from_safetensors(path: Path, read: Callable[[Path], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return read(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}).") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable, where the system can open a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens none
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
