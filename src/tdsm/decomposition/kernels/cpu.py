"""The gated sum on CPU in float32: `gated_sum.cpp`, compiled once per machine for its vector instructions.

About half a second with g++, for each number of channels; the library is kept under `$XDG_CACHE_HOME/tdsm`
(`~/.cache/tdsm`), named after its source, the compiler and the processor's features. Without a working compiler
`load` says so once and returns None.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tdsm.base.errors import ResourceError
from tdsm.base.io import write_bytes

SOURCE = Path(__file__).with_name("gated_sum.cpp")
IS_X86 = platform.machine() in ("x86_64", "AMD64")
NATIVE = ["-march=native", "-mprefer-vector-width=512"] if IS_X86 else ["-mcpu=native"]
# Clamps become single instructions; nothing in the source tests for NaN or the sign of zero.
FLAGS = [*NATIVE, "-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
FLAGS += ["-fno-signed-zeros", "-ffinite-math-only", "-shared", "-fPIC", "-pthread"]
LANES = 16  # hidden units come in multiples of the widest vector
MAX_PARTS = 64  # of the points, in the backward pass: bounds both its scratch memory and its parallelism


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    out = a.new_empty(*r.shape, weight.shape[0])
    inputs = _padded(a, b, r, bias, weight)
    _call("forward", inputs, [out], *r.shape, inputs[-1].shape[1])
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a, b, r, bias and weight, the hidden units computed again, not stored."""
    inputs = _padded(a, b, r, bias, weight)
    grads = [torch.empty_like(x) for x in inputs]
    (tokens, points), (channels, hidden) = r.shape, inputs[-1].shape
    parts = min(MAX_PARTS, (points + 15) // 16)
    scratch = a.new_empty(parts * _required(channels).scratch_per_part(hidden))
    _call("backward", [*inputs, grad], [*grads, scratch], parts, tokens, points, hidden)
    return tuple(_resized(x, weight.shape[1], hidden) if x is not grads[2] else x for x in grads)


@cache
def load(channels: int = 3) -> ctypes.CDLL | None:
    """Return the library for a number of channels, compiled if it has not been yet; None, and why, if it cannot."""
    try:
        library = ctypes.CDLL(str(_build(channels)))
    except (OSError, subprocess.CalledProcessError) as error:
        _say((getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error))
        return None
    library.scratch_per_part.argtypes = [ctypes.c_int64]
    library.scratch_per_part.restype = ctypes.c_int64
    return library


def bare(count: int) -> None:
    """Do `count` gated multiply-adds from cache: what no way of decoding as many can undercut."""
    u, g, w = torch.randn(3, 256)
    library = _required(3)
    library.bare_gated_sum(
        *(ctypes.c_void_p(x.data_ptr()) for x in (u, g, w)),
        ctypes.c_int64(count),
        ctypes.c_int(torch.get_num_threads()),
    )


def _required(channels: int) -> ctypes.CDLL:
    library = load(channels)
    if library is None:
        raise ResourceError("Backend 'cpu' was asked for, but its kernel cannot be compiled here. Use 'eager'.")
    return library


def is_built(channels: int = 3) -> bool:
    """Tell whether `load` will find the library compiled."""
    try:
        return _command(channels)[1].exists()
    except (OSError, subprocess.CalledProcessError):
        return False


def _build(channels: int) -> Path:
    """Return the path of the library in the cache folder, after compiling it there if it is missing."""
    command, path = _command(channels)
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / path.name
            _run(*command, "-o", str(built))
            write_bytes(path, built.read_bytes())
    return path


@cache
def _command(channels: int) -> tuple[list[str], Path]:
    """Return the command that compiles the library and the path it is kept at."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [c for c in ("c++", "g++", "clang++") if shutil.which(c)][:1]
    if not compiler:
        raise OSError("no C++ compiler found")
    flags = [*FLAGS, f"-DCHANNELS={channels}"]
    macros = _run(*compiler, *NATIVE, "-dM", "-E", "-x", "c++", os.devnull)  # names the compiler and the processor
    name = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), " ".join(flags).encode(), macros])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdsm"
    return [*compiler, *flags, str(SOURCE)], folder / f"gated_sum-{name}.so"


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@cache
def _say(reason: str) -> None:
    """Say once that the kernel is missing, and why."""
    warnings.warn(
        "Token decoding runs without its compiled kernel, 4 times slower or more. Install a C++ compiler (g++ or "
        f"clang++) or name one in CXX; the cache folder must be writable. The reason: {reason}",
        stacklevel=3,
    )


def _padded(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor) -> list[Tensor]:
    """Return the inputs dense and with whole vectors of hidden units: those added are zero and add nothing."""
    hidden = weight.shape[1]
    whole = hidden + -hidden % LANES
    a, b, bias, weight = (_resized(x, whole, hidden) for x in (a, b, bias, weight))
    return [x.contiguous() for x in (a, b, r, bias, weight)]


def _resized(x: Tensor, to: int, hidden: int) -> Tensor:
    """Cut or pad each stretch of `hidden` units on the last axis (one, or the halves u and g) `to` a size."""
    return x if to == hidden else F.pad(x.unflatten(-1, (-1, hidden)), (0, to - hidden)).flatten(-2)


def _call(name: str, inputs: list[Tensor], outputs: list[Tensor], *sizes: int) -> None:
    """Call a function of the library with the inputs, the outputs it fills, sizes and the number of threads."""
    channels = inputs[4].shape[0]
    inputs = [x.contiguous() for x in inputs]
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (*inputs, *outputs))
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*inputs, *outputs)]
    getattr(_required(channels), name)(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_int(torch.get_num_threads()))
