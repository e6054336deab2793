"""The sum that is left per (token, point), differentiable, its elementwise part recomputed rather than stored.

[u, g] = (A_n + B_k) · r(k, n) + b';   out[k, n, c] = Σ_m w[c, m] · u_m · GELU(g_m)
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, library

from tdsm.decomposition.kernels import cpu

BACKENDS = ("eager", "cpu", "gpu")  # modules beside this one, each with a forward and a backward; faster ones last
MOST_GPU_CHANNELS = 4  # each has sums of its own; of more, matrix products are faster


def gated_sum(
    query_hidden: Float[Tensor, "points rows"],
    token_hidden: Float[Tensor, "tokens rows"],
    scale: Float[Tensor, "tokens points"],
    bias: Float[Tensor, " rows"],
    weight: Float[Tensor, "channels hidden"] | None,
    *,
    backend: str | None = None,
) -> Float[Tensor, "tokens points channels"]:
    """Sum the gated hidden units of every (token, point); the arguments are A, B, r, b' and w above.

    Rows are those of u, then those of g; g alone where nothing is gated: then u is 1. Without a weight there is one
    channel, whose w stands in the rows of u already.

    >>> import torch
    >>> a, b, w = torch.randn(9, 8), torch.randn(5, 8), torch.randn(3, 4)
    >>> gated_sum(a, b, torch.ones(5, 9), torch.zeros(8), w).shape
    torch.Size([5, 9, 3])

    Args:
        backend: A name in `BACKENDS`; None takes the fastest that serves the device and dtype.
    """
    return _gated_sum(query_hidden, token_hidden, scale, bias, weight, backend)


def fastest(like: Tensor, channels: int = 1) -> str:
    """Name the fastest backend that works here for tensors of this device and dtype, and so many channels."""
    return next(name for name in reversed(BACKENDS) if serves(name, like, channels))


def serves(backend: str, like: Tensor, channels: int = 1) -> bool:
    """Tell whether a backend works here for tensors of this device and dtype, and so many channels."""
    kind = (like.dtype, like.device.type)
    if backend == "cpu":
        return kind == (torch.float32, "cpu") and cpu.serves(channels)
    if backend == "gpu":
        fits = channels <= MOST_GPU_CHANNELS
        return fits and kind == (torch.float32, "cuda") and find_spec("triton") is not None
    return True


def _module(backend: str | None, bias: Tensor, weight: Tensor | None) -> ModuleType:
    name = backend or fastest(bias, 1 if weight is None else len(weight))
    return import_module(f"tdsm.decomposition.kernels.{name}")


# Operators of torch's own kind, so that torch.compile takes them as they are instead of breaking its graph.

INPUTS = "Tensor a, Tensor b, Tensor r, Tensor bias, Tensor? weight"


@library.custom_op("tdsm::gated_sum", mutates_args=(), schema=f"({INPUTS}, str? backend) -> Tensor")
def _gated_sum(a, b, r, bias, weight, backend):
    return _module(backend, bias, weight).forward(a, b, r, bias, weight)


@_gated_sum.register_fake
def _(a, b, r, bias, weight, backend):
    return a.new_empty(*r.shape, 1 if weight is None else weight.shape[0])


@library.custom_op(
    "tdsm::gated_sum_backward", mutates_args=(), schema=f"({INPUTS}, Tensor grad, str? backend) -> Tensor[]"
)
def _gated_sum_backward(a, b, r, bias, weight, grad, backend):
    return _module(backend, bias, weight).backward(a, b, r, bias, weight, grad)


@_gated_sum_backward.register_fake
def _(a, b, r, bias, weight, grad, backend):
    return [torch.empty_like(x) for x in (a, b, r, bias, weight) if x is not None]


def _keep_inputs(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad):
    *inputs, weight = ctx.saved_tensors
    grads = _gated_sum_backward(*inputs, weight, grad, ctx.backend)
    return *grads, *([None] if weight is None else []), None


_gated_sum.register_autograd(_gradients, setup_context=_keep_inputs)
