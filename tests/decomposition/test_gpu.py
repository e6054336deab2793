"""The Triton kernels against the eager gated sum in float64; by Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU: set TRITON_INTERPRET=1 to run these in the interpreter", allow_module_level=True)

from tdsm.decomposition.kernels import eager, gpu  # noqa: E402
from tdsm.decomposition.kernels.gated_sum import gated_sum  # noqa: E402
from tests.decomposition.test_kernels import FORMS, doubled  # noqa: E402
from tests.decomposition.test_kernels import random_inputs as on_cpu  # noqa: E402


def random_inputs(tokens, points, hidden, channels, form="gated"):
    return [x if x is None else x.to(DEVICE) for x in on_cpu(tokens, points, hidden, channels, form=form)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 11, 20, 3), (8, 16, 16, 4), (3, 17, 33, 2)], ids=str)
def test_triton_is_as_exact_as_eager(shape, form):
    inputs = random_inputs(*shape, form)
    grad = torch.randn(*shape[:2], 1 if form == "folded" else shape[3], device=DEVICE)
    exact = [eager.forward(*doubled(inputs)), *eager.backward(*doubled(inputs), grad.double())]
    fused = [gpu.forward(*inputs), *gpu.backward(*inputs, grad)]
    assert len(fused) == len(exact)
    for name, got, want in zip(("out", "a", "b", "r", "bias", "weight"), fused, exact, strict=False):
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 3e-6 * (want.abs().max() + 1), name


def test_more_tokens_than_a_grid_axis_holds_are_one_call(monkeypatch):
    monkeypatch.setattr(gpu, "TILE", {"BT": 1, "BP": 1, "BM": 16})  # as many tiles as 600 000 tokens have blocks
    tiles = []
    kernel = gpu._forward
    monkeypatch.setattr(gpu, "_forward", {(70_000,): lambda *a, **k: tiles.append(a)})
    gpu.forward(*random_inputs(70_000, 1, 16, 1))
    assert len(tiles) == 1
    monkeypatch.setattr(gpu, "_forward", kernel)
    small = random_inputs(3, 5, 16, 1)
    torch.testing.assert_close(gpu.forward(*small), eager.forward(*small), rtol=1e-5, atol=1e-5)


def test_triton_is_reached_through_the_differentiable_call():
    inputs = [x.requires_grad_() for x in random_inputs(3, 5, 7, 3)]
    grads = [torch.autograd.grad(gated_sum(*inputs, backend=b).square().sum(), inputs) for b in ("gpu", "eager")]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 2])
def test_nothing_in_gives_nothing_out(tokens):
    inputs = random_inputs(tokens, 2 * tokens, 4, 3)
    out = gpu.forward(*inputs)
    assert out.shape == (tokens, 2 * tokens, 3)
    assert all(x.isfinite().all() for x in gpu.backward(*inputs, out))


def test_the_bare_floor_does_its_work():
    step, block, rounds = 1e-3, gpu.BARE["BLOCK"], gpu.BARE["ROUNDS"]
    u = torch.arange(block).double() * step
    g = 0.5 - u + torch.arange(rounds)[:, None] * step
    want = 2 * (u * torch.nn.functional.gelu(g)).sum()
    out = gpu.bare(2 * block * rounds, torch.device(DEVICE))
    assert out.shape == (2,)
    assert (out.double().cpu() - want).abs().max() < 1e-3 * want.abs()
