"""The gated sum on a CPU in float32, by the compiled kernel of `gated_sum.cpp`; see `library` for where it is from."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from tdsm.base.errors import ResourceError
from tdsm.decomposition.kernels import library

LANES = 16  # hidden units come in multiples of the widest vector
MOST_CHANNELS = 16  # four at a time are computed together; of more, matrix products are faster
POINTS_OF_PART, MOST_PARTS = 16, 256  # of the backward pass: bound its parallelism and its scratch memory

describe = library.describe


def serves(channels: int) -> bool:
    """Tell whether the kernel is there and takes so many channels."""
    return channels <= MOST_CHANNELS and library.load().handle is not None


def forward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None) -> Tensor:
    """Return Σ_m weight[c, m] · u · GELU(g), of shape (tokens, points, channels)."""
    hidden = _hidden(bias, weight)
    inputs = _padded([a, b, r, bias, weight], hidden)
    sizes = _sizes(inputs)
    out = a.new_empty(*r.shape, sizes[3])
    _call("forward", [*inputs, out], *sizes)
    return out


def backward(a: Tensor, b: Tensor, r: Tensor, bias: Tensor, weight: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Return the gradients of a, b, r, bias and weight, if there is one; hidden units computed again, not stored."""
    hidden = _hidden(bias, weight)
    inputs = _padded([a, b, r, bias, weight], hidden)
    grads = [None if x is None else torch.empty_like(x) for x in inputs]
    sizes = _sizes(inputs)
    parts = min(MOST_PARTS, -(-sizes[1] // POINTS_OF_PART))
    scratch = a.new_empty(parts * _required().scratch_per_part(*map(ctypes.c_int64, sizes[2:])))
    _call("backward", [*inputs, (grad / 2).contiguous(), *grads, scratch], parts, *sizes)
    whole = sizes[2]
    return [x if x is grads[2] else _resized(x, hidden, whole) for x in grads if x is not None]


def bare(count: int) -> None:
    """Sum `count` gated units from cache: what no way of decoding as many can undercut."""
    u, g = torch.randn(2, 256)
    _required().bare_gated_sum(_pointer(u), _pointer(g), ctypes.c_int64(count), ctypes.c_int(torch.get_num_threads()))


def _required() -> ctypes.CDLL:
    handle = library.load().handle
    if handle is None:
        raise ResourceError(f"Backend 'cpu' was asked for, but has no kernel here ({describe()}). Use 'eager'.")
    return handle


def _hidden(bias: Tensor, weight: Tensor | None) -> int:
    return len(bias) // 2 if weight is None else weight.shape[1]


def _padded(inputs: list[Tensor | None], hidden: int) -> list[Tensor | None]:
    """Return the inputs dense and with whole vectors of hidden units: those added are zero and add nothing."""
    whole = hidden + -hidden % LANES
    resized = (x if x is None or i == 2 else _resized(x, whole, hidden) for i, x in enumerate(inputs))
    return [x if x is None else x.contiguous() for x in resized]


def _resized(x: Tensor, to: int, hidden: int) -> Tensor:
    """Cut or pad each stretch of `hidden` units on the last axis (one, or the halves u and g) `to` a size."""
    return x if to == hidden else F.pad(x.unflatten(-1, (-1, hidden)), (0, to - hidden)).flatten(-2)


def _sizes(inputs: list[Tensor | None]) -> tuple[int, int, int, int, int]:
    """Return tokens, points, hidden units, channels, and rows of the first layer, as the library takes them."""
    _, _, r, bias, weight = inputs
    assert r is not None
    assert bias is not None
    return *r.shape, _hidden(bias, weight), 1 if weight is None else len(weight), len(bias)


def _call(name: str, arrays: list[Tensor | None], *sizes: int) -> None:
    """Call a function of the library with arrays, sizes and the number of threads."""
    assert all(x is None or (x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()) for x in arrays)
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(_required(), name)(*map(_pointer, arrays), *map(ctypes.c_int64, sizes), threads)


def _pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())
