"""Every backend of the gated sum against the eager one in float64; errors of GELU; builds; memory; threads; graphs."""

import ctypes
import math
import shutil
import subprocess
import sys

import pytest
import torch
from scipy.special import ndtr
from torch import library as operators
from torch.utils._python_dispatch import TorchDispatchMode

from tdsm.base.errors import ResourceError
from tdsm.decomposition.kernels import build, cpu, eager, library
from tdsm.decomposition.kernels.gated_sum import BACKENDS, fastest, gated_sum

needs_kernel = pytest.mark.skipif(not cpu.serves(1), reason=cpu.describe())
NAMES = ("a", "b", "r", "bias", "weight")
FORMS = ("gated", "folded", "ungated")  # with u and w; with w in u; without u


def random_inputs(tokens, points, hidden, channels, dtype=torch.float32, form="gated"):
    rows = hidden if form == "ungated" else 2 * hidden
    a, b = torch.randn(points, rows), torch.randn(tokens, rows)
    r, bias = torch.rand(tokens, points) + 0.3, torch.randn(rows)
    weight = None if form == "folded" else torch.randn(channels, hidden) / hidden**0.5
    if weight is None:  # in the rows of u, so that sums stay of the same size
        for x in (a, b, bias):
            x[..., :hidden] /= hidden**0.5
    return [x if x is None else x.to(dtype) for x in (a, b, r, bias, weight)]


def doubled(inputs):
    return [x if x is None else x.double() for x in inputs]


def approximations(g):
    """Return the compiled GELU and its derivative at g."""
    whole = torch.nn.functional.pad(g, (0, -len(g) % cpu.LANES))
    outs = torch.empty_like(whole), torch.empty_like(whole)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (whole, *outs)]
    library.load().handle.approximations(*pointers, ctypes.c_int64(len(whole)))
    return [x[: len(g)] for x in outs]


def largest_error_beside_eager(inputs, grad):
    """Compare values and gradients with float64; the bound grows with the number of terms of each sum."""
    hidden, (tokens, points) = eager._halves(inputs[3], inputs[4])[1].shape[-1], inputs[2].shape
    exact = [eager.forward(*doubled(inputs)), *eager.backward(*doubled(inputs), grad.double())]
    compiled = [cpu.forward(*inputs), *cpu.backward(*inputs, grad)]
    summed = (hidden, tokens, points, hidden, tokens * points, tokens * points)
    for name, got, want, terms in zip(("out", *NAMES), compiled, exact, summed, strict=False):
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 3e-6 * (want.abs().max() + 1) + 1e-7 * terms, name
    assert len(compiled) == len(exact)


@needs_kernel
def test_approximations_stay_within_their_stated_errors():
    g = torch.linspace(-12, 12, 4_000_000)
    gelu, slope = approximations(g)
    exact = g.double()
    cdf = torch.from_numpy(ndtr(exact.numpy()))
    assert (gelu - exact * cdf).abs().max() < 7e-7
    assert (slope - cdf - exact * torch.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)).abs().max() < 1.4e-6


@needs_kernel
def test_tails_are_exact():
    tail = torch.tensor([6.2, 8, 1e3, 1e30, 1.7e38])  # twice GELU must not overflow
    assert torch.equal(approximations(tail)[0], tail)
    assert torch.equal(approximations(-tail)[0], torch.zeros(5))
    for sign, slope in ((1, 1), (-1, 0)):
        assert (approximations(sign * tail)[1] - slope).abs().max() < 1e-7


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_is_passed_on(form):
    a, b, r, bias, weight = random_inputs(2, 3, 20, 3, form=form)
    a[1, 15] = math.nan
    b[1, 17] = math.inf
    assert torch.equal(cpu.forward(a, b, r, bias, weight).isfinite(), eager.forward(a, b, r, bias, weight).isfinite())


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [1, 16, 255, 768])
@pytest.mark.parametrize(("tokens", "points", "channels"), [(1, 1, 1), (33, 31, 3), (5, 70, 2), (40, 3, 16)])
def test_compiled_is_as_exact_as_eager(tokens, points, hidden, channels, form):
    inputs = random_inputs(tokens, points, hidden, channels, form=form)
    grad = torch.randn(tokens, points, 1 if form == "folded" else channels)
    largest_error_beside_eager(inputs, grad)


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_approximations_add_no_error_to_that_of_float32(form):
    inputs = random_inputs(50, 60, 768, 3, form=form)
    exact = eager.forward(*doubled(inputs))
    assert (cpu.forward(*inputs) - exact).abs().max() < 1.5 * (eager.forward(*inputs) - exact).abs().max()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_kernel)])
def test_nothing_in_gives_nothing_out(backend, shape):
    inputs = [x.requires_grad_() for x in random_inputs(*shape, 4, 3)]
    out = gated_sum(*inputs, backend=backend)
    assert out.shape == (*shape, 3)
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 600, 2**20])
def test_eager_gradients_are_autograds(block, form, monkeypatch):
    monkeypatch.setitem(eager.BLOCK_BYTES, "cpu", block)
    inputs = random_inputs(4, 5, 7, 3, torch.float64, form=form)
    needed = [x.requires_grad_() for x in inputs if x is not None]
    a, b, r, bias, weight = inputs
    hidden = (a + b[:, None]) * r[..., None] + bias
    u, g = (1, hidden) if form == "ungated" else hidden.chunk(2, -1)
    gated = u * torch.nn.functional.gelu(g)
    plain = gated.sum(-1, keepdim=True) if weight is None else gated @ weight.T
    result = gated_sum(*inputs, backend="eager")
    torch.testing.assert_close(result, plain, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(plain)
    for got, want in zip(
        torch.autograd.grad(result, needed, grad), torch.autograd.grad(plain, needed, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_threads_change_no_bit(form):
    inputs = random_inputs(40, 50, 300, 3, form=form)
    grad = torch.randn(40, 50, 1 if form == "folded" else 3)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append([cpu.forward(*inputs), *cpu.backward(*inputs, grad)])
    torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


# ---------------------------------------------------------------- builds

MACHINES = {"baseline": (None, [])}
MACHINES |= {name: (needs, flags) for name, (needs, flags) in build.PREBUILT["x86_64"].items()}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_build_is_as_exact(compiler, machine, monkeypatch, tmp_path):
    needs, flags = MACHINES[machine]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if not library.IS_X86 or (needs is not None and needs not in library.instructions()):
        pytest.skip(f"this processor has no {needs or 'x86'}")
    path = tmp_path / "kernel.so"
    subprocess.run(build.command([compiler], flags, str(library.SOURCE), str(path)), check=True)
    built = library._opened(path, machine)
    assert built.origin.endswith({"baseline": " 4 lanes", "x86_64-v3": " 8 lanes", "x86_64-v4": " 16 lanes"}[machine])
    monkeypatch.setattr(library, "load", lambda: built)
    for form in FORMS:
        inputs = random_inputs(20, 37, 100, 3, form=form)
        largest_error_beside_eager(inputs, torch.randn(20, 37, 1 if form == "folded" else 3))
    test_approximations_stay_within_their_stated_errors()
    test_tails_are_exact()


ARM = "aarch64-linux-gnu-"


@pytest.mark.slow
def test_the_arm_build_has_fused_vector_instructions_and_no_spill_in_its_loop(tmp_path):
    if shutil.which(f"{ARM}g++") is None:
        pytest.skip(f"{ARM}g++ is not installed")
    path, (_, flags) = tmp_path / "kernel.so", build.PREBUILT["aarch64"]["aarch64"]
    subprocess.run(build.command([f"{ARM}g++"], flags, str(library.SOURCE), str(path)), check=True)
    listing = subprocess.run([f"{ARM}objdump", "-d", path], check=True, capture_output=True, text=True).stdout
    for instruction in ("fmla", "fmul", "fminnm|fcmgt|fmin"):
        assert any(f"\t{name}\tv" in listing for name in instruction.split("|")), instruction
    assert "fdiv\tv" not in listing


# ---------------------------------------------------------------- graphs


def test_torch_compile_takes_it_into_its_graph():
    """In a process of its own: checks of shapes at run time, as all tests have, cannot be compiled."""
    program = """
import torch
from tdsm.decomposition.kernels import gated_sum
from tdsm.decomposition.separated import evaluate, prepare
from tests.decomposition.test_kernels import FORMS, random_inputs
from tests.decomposition.test_separated import FORMS as READOUTS, converted, random_readout

def same(function, inputs):
    needed = [x.requires_grad_() for x in inputs if x is not None]
    values = [way(*inputs) for way in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, needed) for value in values))

for form in FORMS:
    same(lambda *inputs: gated_sum(*inputs).square().sum(), random_inputs(4, 5, 16, 3, form=form))
for form in READOUTS:
    readout = converted(random_readout(8, 16, 3, form=form), torch.float32)
    solo = lambda queries, values: evaluate(prepare(readout, queries), values, chunk=2).square().sum()
    same(solo, [torch.randn(6, 8), torch.randn(1, 4, 8)])
print("compiled whole")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout == "compiled whole\n", done.stderr[-3000:]


@pytest.mark.parametrize("form", FORMS)
def test_the_operator_keeps_torchs_contract(form):
    inputs = [x if x is None else x.requires_grad_() for x in random_inputs(4, 5, 16, 3, form=form)]
    operators.opcheck(torch.ops.tdsm.gated_sum.default, (*inputs, None))


def test_it_says_that_it_has_no_second_derivative():
    inputs = [x.requires_grad_() for x in random_inputs(4, 5, 16, 3)]
    (grad,) = torch.autograd.grad(gated_sum(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


# ---------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Records the size in bytes of the largest tensor any operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpu", marks=needs_kernel)])
def test_nothing_of_size_points_times_tokens_times_hidden_is_made(backend):
    tokens, points, hidden, channels = 64, 256, 128, 3
    inputs = [x.requires_grad_() for x in random_inputs(tokens, points, hidden, channels)]
    saved = []
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        gated_sum(*inputs, backend=backend).sum().backward()
    whole = 4 * tokens * points * 2 * hidden
    assert largest.size <= whole / 8  # 2 MB of 16: one block, or the scratch of the parts
    assert sum(x.nbytes for x in saved) <= sum(x.nbytes for x in inputs) + 4 * tokens * points * channels


@needs_kernel
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


def test_without_its_kernel_backend_cpu_says_what_to_use(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: library.Library(None, "eager: no C++ compiler found"))
    inputs = random_inputs(2, 3, 4, 3)
    assert torch.equal(gated_sum(*inputs), eager.forward(*inputs))
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler found.*Use 'eager'"):
        gated_sum(*inputs, backend="cpu")
