"""Every backend of the gated sum against the eager one in float64; errors of erf; memory; threads; no compiler."""

import ctypes
import math
import subprocess
import sys

import pytest
import torch
from scipy.special import ndtr
from torch.utils._python_dispatch import TorchDispatchMode

from tdsm.base.errors import ResourceError
from tdsm.decomposition.kernels import cpu, eager
from tdsm.decomposition.kernels.gated_sum import BACKENDS, fastest, gated_sum

needs_compiler = pytest.mark.skipif(cpu.load() is None, reason="no C++ compiler on this machine")
NAMES = ("a", "b", "r", "bias", "weight")


def random_inputs(tokens, points, hidden, channels, dtype=torch.float32):
    a, b = torch.randn(points, 2 * hidden), torch.randn(tokens, 2 * hidden)
    r, bias = torch.rand(tokens, points) + 0.3, torch.randn(2 * hidden)
    return [x.to(dtype) for x in (a, b, r, bias, torch.randn(channels, hidden) / hidden**0.5)]


def approximations(g):
    """Return the compiled cdf and slope at g."""
    whole = torch.nn.functional.pad(g, (0, -len(g) % cpu.LANES))
    outs = torch.empty_like(whole), torch.empty_like(whole)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (whole, *outs)]
    cpu.load().approximations(*pointers, ctypes.c_int64(len(whole)))
    return [x[: len(g)] for x in outs]


@needs_compiler
def test_approximations_stay_within_their_stated_errors():
    g = torch.linspace(-12, 12, 4_000_000)
    cdf, slope = approximations(g)
    exact = g.double()
    true_cdf = torch.from_numpy(ndtr(exact.numpy()))
    true_slope = true_cdf + exact * torch.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    assert (cdf - true_cdf).abs().max() < 3e-7  # 6e-7 of erf
    assert (slope - true_slope).abs().max() < 5e-7


@needs_compiler
def test_tails_are_exactly_zero_and_one():
    tail = torch.tensor([5.8, 8, 1e3, 1e30, 3.4e38, math.inf])
    for function in approximations(tail):
        assert (function == 1).all()
    for function in approximations(-tail):
        assert (function == 0).all()


@needs_compiler
def test_what_is_not_finite_is_passed_on():
    a, b, r, bias, weight = random_inputs(2, 3, 20, 3)
    a[1, 30] = math.nan
    b[1, 37] = math.inf
    assert torch.equal(cpu.forward(a, b, r, bias, weight).isfinite(), eager.forward(a, b, r, bias, weight).isfinite())


@needs_compiler
@pytest.mark.parametrize("hidden", [1, 16, 255, 257, 768])
@pytest.mark.parametrize(("tokens", "points", "channels"), [(1, 1, 1), (33, 31, 3), (5, 70, 4), (40, 3, 6)])
def test_compiled_is_as_exact_as_eager(tokens, points, hidden, channels):
    inputs = random_inputs(tokens, points, hidden, channels)
    grad = torch.randn(tokens, points, channels)
    wide = [x.double() for x in inputs]
    exact = [eager.forward(*wide), *eager.backward(*wide, grad.double())]
    compiled = [cpu.forward(*inputs), *cpu.backward(*inputs, grad)]
    summed = (hidden, tokens, points, hidden, tokens * points, tokens * points)
    for name, got, want, terms in zip(("out", *NAMES), compiled, exact, summed, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 3e-6 * (want.abs().max() + 1) + 1e-7 * terms, name


@needs_compiler
def test_approximations_add_no_error_to_that_of_float32():
    inputs = random_inputs(50, 60, 768, 3)
    exact = eager.forward(*(x.double() for x in inputs))
    assert (cpu.forward(*inputs) - exact).abs().max() < 1.5 * (eager.forward(*inputs) - exact).abs().max()


@pytest.mark.parametrize("block", [1, 600, 2**20])
def test_eager_gradients_are_autograds(block, monkeypatch):
    monkeypatch.setitem(eager.BLOCK_BYTES, "cpu", block)
    inputs = [x.requires_grad_() for x in random_inputs(4, 5, 7, 3, torch.float64)]
    a, b, r, bias, weight = inputs
    u, g = ((a + b[:, None]) * r[..., None] + bias).chunk(2, -1)
    plain = (u * torch.nn.functional.gelu(g)) @ weight.T
    result = gated_sum(*inputs, backend="eager")
    torch.testing.assert_close(result, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    for got, want in zip(
        torch.autograd.grad(result, inputs, grad), torch.autograd.grad(plain, inputs, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@needs_compiler
def test_threads_change_no_bit():
    inputs, grad = random_inputs(40, 50, 300, 3), torch.randn(40, 50, 3)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append([cpu.forward(*inputs), *cpu.backward(*inputs, grad)])
    torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


class Largest(TorchDispatchMode):
    """Records the size in bytes of the largest tensor any operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_compiler)])
def test_nothing_of_size_points_times_tokens_times_hidden_is_made(backend):
    tokens, points, hidden, channels = 64, 256, 128, 3
    inputs = [x.requires_grad_() for x in random_inputs(tokens, points, hidden, channels)]
    saved = []
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        gated_sum(*inputs, backend=backend).sum().backward()
    whole = 4 * tokens * points * 2 * hidden
    assert largest.size <= whole / 8  # 2 MB of 16: one block, or the scratch of the parts
    assert sum(x.nbytes for x in saved) <= sum(x.nbytes for x in inputs) + 4 * tokens * points * channels


@needs_compiler
def test_memory_of_a_process_stays_flat_in_tokens():
    """512 points, hidden 768: stored, the hidden units of 64 tokens would be 200 MB; the peak grows by under 32."""
    program = (
        "import resource, torch; from tdsm.decomposition.kernels import gated_sum\n"
        "def peak(tokens):\n"
        "    x = [torch.randn(512, 1536), torch.randn(tokens, 1536), torch.rand(tokens, 512), torch.randn(1536)]\n"
        "    x = [t.requires_grad_() for t in (*x, torch.randn(3, 768))]\n"
        "    gated_sum(*x).sum().backward()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "few = peak(1); print(peak(64) - few)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 32 * 1024  # ru_maxrss is in KB


def test_the_fastest_backend_serves_the_dtype():
    assert fastest(torch.zeros(1, dtype=torch.float64)) == "eager"
    assert fastest(torch.zeros(1)) in BACKENDS


@pytest.fixture
def forgotten():
    """Forget the compiler and the loaded library before and after."""

    def forget():
        for remembered in (cpu.load, cpu._command, cpu._say):
            remembered.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_it_says_so_once_and_runs_eagerly(compiler, monkeypatch, forgotten):
    monkeypatch.setenv("CXX", compiler)
    assert not cpu.is_built()
    problems = [random_inputs(2, 3, 4, channels) for channels in (3, 3, 1)]
    with pytest.warns(UserWarning, match="without its compiled kernel") as said:
        results = [gated_sum(*inputs) for inputs in problems]
    assert len(said) == 1
    assert all(torch.equal(out, eager.forward(*inputs)) for out, inputs in zip(results, problems, strict=True))
    with pytest.raises(ResourceError, match="Use 'eager'"):
        gated_sum(*problems[0], backend="cpu")


@needs_compiler
def test_the_library_is_compiled_once_per_machine(monkeypatch, tmp_path, forgotten):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not cpu.is_built()
    assert cpu.load() is not None
    assert cpu.is_built()
    (library,) = (tmp_path / "tdsm").iterdir()
    written = library.stat().st_mtime_ns
    cpu.load.cache_clear()
    assert cpu.load() is not None
    assert library.stat().st_mtime_ns == written
