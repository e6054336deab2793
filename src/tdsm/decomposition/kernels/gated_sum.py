"""The sum that is left per (token, point), differentiable, its elementwise part recomputed rather than stored.

[u, g] = (A_n + B_k) · r(k, n) + b';   out[k, n, c] = Σ_m w[c, m] · u_m · GELU(g_m)
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.decomposition.kernels import cpu

BACKENDS = ("eager", "cpu", "gpu")  # modules beside this one, each with a forward and a backward; faster ones last


def gated_sum(
    query_hidden: Float[Tensor, "points double_hidden"],
    token_hidden: Float[Tensor, "tokens double_hidden"],
    scale: Float[Tensor, "tokens points"],
    bias: Float[Tensor, " double_hidden"],
    weight: Float[Tensor, "channels hidden"],
    *,
    backend: str | None = None,
) -> Float[Tensor, "tokens points channels"]:
    """Sum the gated hidden units of every (token, point); the arguments are A, B, r, b' and w above.

    >>> import torch
    >>> a, b, w = torch.randn(9, 8), torch.randn(5, 8), torch.randn(3, 4)
    >>> gated_sum(a, b, torch.ones(5, 9), torch.zeros(8), w).shape
    torch.Size([5, 9, 3])

    Args:
        backend: A name in `BACKENDS`; None takes the fastest that serves the device and dtype.
    """
    module = import_module(f"tdsm.decomposition.kernels.{backend or fastest(weight, weight.shape[0])}")
    return _GatedSum.apply(module, query_hidden, token_hidden, scale, bias, weight)


def fastest(like: Tensor, channels: int = 3) -> str:
    """Name the fastest backend that works here for tensors of this device and dtype."""
    return next(name for name in reversed(BACKENDS) if serves(name, like, channels))


def serves(backend: str, like: Tensor, channels: int = 3) -> bool:
    """Tell whether a backend works here for tensors of this device and dtype."""
    kind = (like.dtype, like.device.type)
    if backend == "cpu":
        return kind == (torch.float32, "cpu") and cpu.load(channels) is not None
    if backend == "gpu":
        return kind == (torch.float32, "cuda") and find_spec("triton") is not None
    return True


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend: ModuleType, *inputs: Tensor) -> Tensor:
        ctx.backend = backend
        ctx.save_for_backward(*inputs)
        return backend.forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return None, *ctx.backend.backward(*ctx.saved_tensors, grad)
