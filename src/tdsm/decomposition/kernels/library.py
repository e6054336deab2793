"""The compiled kernel of this process: out of the installed package, else compiled here, else none and why.

Decided once a process, by the machine and the installation alone. What is compiled here, in about two seconds, is kept
in `$XDG_CACHE_HOME/tdsm` (`~/.cache/tdsm`), named after source, compiler and processor, its hash beside it. The folder
must be this user's and closed to all others: whoever can write there could run code in this process.
"""

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from tdsm.base.cache import cache_folder, check_own
from tdsm.base.io import file_hash, write_bytes, write_text
from tdsm.decomposition.kernels import build

SOURCE = Path(__file__).with_name("gated_sum.cpp")
PREBUILT = Path(__file__).with_name("prebuilt")
COMPILE_SECONDS = 120  # after which a compiler is given up
IS_X86 = platform.machine() in ("x86_64", "AMD64")
NATIVE = ["-march=native", "-mprefer-vector-width=512"] if IS_X86 else ["-mcpu=native"]

log = logging.getLogger("tdsm")


class Library(NamedTuple):
    """The kernel, and in words where it comes from; None where there is none, and why."""

    handle: ctypes.CDLL | None
    origin: str


@cache
def load() -> Library:
    """Return the library of this process; where there is none, say so once."""
    try:
        library = _prebuilt() or _compiled()
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        warnings.warn(
            "Token decoding runs without its compiled kernel, 4 times slower or more. Install a C++ compiler (g++ or "
            "clang++) or name one in CXX; the cache folder must be this user's, and writable by no other. The reason: "
            f"{reason.splitlines()[0]}",
            stacklevel=2,
        )
        return Library(None, f"eager: {reason.splitlines()[0]}")
    log.debug("kernel: %s", library.origin)
    return library


def describe() -> str:
    """Say in a few words which kernel this process uses on a CPU, such as "prebuilt x86_64-v4, 16 lanes"."""
    return load().origin


def instructions() -> tuple[str, ...]:
    """Name the vector instructions of this processor, as torch calls them."""
    best = torch.backends.cpu.get_cpu_capability()
    return ("AVX512", "AVX2", "DEFAULT") if best == "AVX512" else (best, "DEFAULT")


def _prebuilt() -> Library | None:
    """Return the best library of the package that this processor can run."""
    for name, (needs, _) in build.PREBUILT.get(platform.machine(), {}).items():
        path = PREBUILT / f"{name}.so"
        if needs in instructions() and path.exists():
            return _opened(path, f"prebuilt {name}")
    return None


def _compiled() -> Library:
    """Return the library compiled for this very processor, now or by an earlier process."""
    compiler = _compiler()
    macros = _run(*compiler, *NATIVE, "-dM", "-E", "-x", "c++", os.devnull)  # names the compiler and the processor
    recipe = b"\0".join([SOURCE.read_bytes(), " ".join(build.command([], NATIVE, "", "")).encode(), macros])
    path = cache_folder() / f"gated_sum-{hashlib.sha256(recipe).hexdigest()[:16]}.so"
    if not _is_whole(path):
        _compile(compiler, path)
    version = re.search(rb'__VERSION__ "(.*)"', macros)
    return _opened(path, f"compiled here by {Path(compiler[0]).name} {version[1].decode() if version else ''}".strip())


def _compiler() -> list[str]:
    """Return the words that call the compiler."""
    if not hasattr(os, "getuid"):
        raise OSError("on this system it is not compiled")
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise ValueError(f"CXX is {os.environ['CXX']!r}: {error}") from None
    compiler = named or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    if not compiler:
        raise OSError("no C++ compiler found")
    return compiler


def _is_whole(path: Path) -> bool:
    """Tell whether a kept library is there, this user's alone, and has the hash beside it."""
    try:
        check_own(path)
        return file_hash(path) == _hash_file(path).read_text()
    except OSError:
        return False


def _compile(compiler: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.name
        _run(*build.command(compiler, NATIVE, str(SOURCE), str(built)))
        digest = write_bytes(path, built.read_bytes())
    path.chmod(0o600)
    write_text(_hash_file(path), digest)


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS).stdout


def _opened(path: Path, origin: str) -> Library:
    handle = ctypes.CDLL(str(path))
    handle.scratch_per_part.restype = ctypes.c_int64
    return Library(handle, f"{origin}, {handle.lanes()} lanes")
