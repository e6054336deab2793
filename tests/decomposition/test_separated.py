"""The separated evaluation against the readout's own equations, in NumPy float64, values and derivatives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf
from torch import Tensor

from tdsm.decomposition.separated import evaluate, full_precision, prepare
from tdsm.tokenfield import Norm, Readout

MATMUL = torch.backends.cuda.matmul
BACKENDS = ["eager", None]  # None: the fastest there is for the dtype
FORMS = {"gated": (True, False), "ungated": (False, False), "gated normed": (True, True), "normed": (False, True)}
REDUCE = {
    "none": lambda images: images,
    "mean": lambda images: images.mean(-1),
    "l2": lambda images: np.sqrt((images**2).sum(-1)),
}


def random_readout(width, hidden, channels, eps=1e-5, form="gated"):
    """Draw the weights of a readout, in float64."""
    is_gated, has_final_norm = FORMS[form]
    rows = 2 * hidden if is_gated else hidden

    def weight(rows, columns):
        return torch.randn(rows, columns, dtype=torch.float64) / columns**0.5

    def bias(size):
        return 0.3 * torch.randn(size, dtype=torch.float64)

    return Readout(
        norm=Norm(1 + bias(width), bias(width), eps),
        hidden_weight=weight(rows, width),
        hidden_bias=bias(rows),
        output_weight=weight(width, hidden),
        output_bias=bias(width),
        channel_weight=weight(channels, width),
        channel_bias=bias(channels),
        final_norm=Norm(1 + bias(width), bias(width), 1e-3) if has_final_norm else None,
    )


def tensors(readout):
    """Return the readout's tensors by name, those of norms by a dotted one."""
    found = {}
    for name, value in vars(readout).items():
        parts = {"": value} if isinstance(value, Tensor) else {f".{part}": getattr(value, part, None) for part in PARTS}
        found |= {name + part: x for part, x in parts.items() if x is not None}
    return found


PARTS = ("weight", "bias")


def with_tensors(readout, given):
    """Return the readout with other tensors, named as in `tensors`."""

    def renewed(name, value):
        if isinstance(value, Norm):
            return Norm(given[f"{name}.weight"], given[f"{name}.bias"], value.eps)
        return given.get(name, value)

    return Readout(**{name: renewed(name, value) for name, value in vars(readout).items()})


def converted(readout, dtype):
    """Return the readout in another dtype."""
    return with_tensors(readout, {name: value.to(dtype) for name, value in tensors(readout).items()})


def layer_norm(x, weight, bias, eps):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * weight + bias


def reference(weights, eps, queries, values):
    """I[b, k, n] = W_c y + b_c, y = x + W_2 h + b_2, [u, g] = W_1 LN(x) + b_1, x = q_n + c_bk; h and LN' by form."""
    x = queries + values[:, :, None]
    normed = layer_norm(x, weights["norm.weight"], weights["norm.bias"], eps)
    hidden = normed @ weights["hidden_weight"].T + weights["hidden_bias"]
    g = hidden[..., -weights["output_weight"].shape[1] :]
    gelu = g * 0.5 * (1 + erf(g / np.sqrt(2)))
    h = gelu if g.shape == hidden.shape else hidden[..., : g.shape[-1]] * gelu
    y = x + h @ weights["output_weight"].T + weights["output_bias"]
    if "final_norm.weight" in weights:
        y = layer_norm(y, weights["final_norm.weight"], weights["final_norm.bias"], 1e-3)
    return y @ weights["channel_weight"].T + weights["channel_bias"]


def reference_of(readout, queries, values):
    """Evaluate `reference` in float64 on torch inputs of any dtype."""
    weights = {name: value.double().numpy() for name, value in tensors(readout).items()}
    return reference(weights, readout.norm.eps, queries.double().numpy(), values.double().numpy())


def plainly(readout, queries, values):
    """Evaluate the same in torch operations of the readout's own dtype."""
    x = queries + values[:, :, None]
    hidden = F.linear(F.layer_norm(x, x.shape[-1:], *readout.norm), readout.hidden_weight, readout.hidden_bias)
    u, g = hidden.chunk(2, -1) if readout.is_gated else (1, hidden)
    y = x + F.linear(u * F.gelu(g), readout.output_weight, readout.output_bias)
    if readout.final_norm is not None:
        y = F.layer_norm(y, y.shape[-1:], *readout.final_norm)
    return F.linear(y, readout.channel_weight, readout.channel_bias)


def random_problem(seed):
    """Draw sizes and regime: odd and tiny widths, constant queries or values, huge and small values."""
    rng = np.random.default_rng(seed)
    batch, tokens, points = rng.choice([1, 2]), rng.choice([1, 2, 5]), rng.choice([1, 3, 7])
    width, hidden, channels = rng.choice([1, 2, 5, 8]), rng.choice([1, 3, 16, 20]), rng.choice([1, 3, 4])
    readout = random_readout(width, hidden, channels, form=list(FORMS)[seed % 4])
    queries = torch.randn(points, width, dtype=torch.float64) * 10 ** rng.uniform(-2, 2)
    values = torch.randn(batch, tokens, width, dtype=torch.float64) * 10 ** rng.uniform(-4, 4)
    if rng.random() < 0.2:
        queries[:] = queries[:, :1]
    if rng.random() < 0.2:
        values[:] = values[..., :1]
    return readout, queries, values


@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=lambda r: f"{r.start}-"
)
def test_values_and_derivatives_are_those_of_the_equations(seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        readout, queries, values = random_problem(seed)
        reduction = ["none", "mean", "l2"][seed // 4 % 3]
        inputs = tensors(readout) | {"queries": queries, "values": values}
        for tensor in inputs.values():
            tensor.requires_grad_()
        result = evaluate(prepare(readout, queries, reduction), values, chunk=1 + seed % 4)
        arrays = {name: tensor.detach().numpy() for name, tensor in inputs.items()}

        def expected(arrays, eps=readout.norm.eps, reduction=reduction):
            return REDUCE[reduction](reference(arrays, eps, arrays["queries"], arrays["values"]))

        want = expected(arrays)
        np.testing.assert_allclose(result.detach(), want, rtol=1e-10, atol=1e-11 * (1 + abs(want).max()))

        # Derivatives by a complex step: exact to rounding, and nothing of torch in them.
        cotangent = np.random.default_rng(seed).standard_normal(want.shape)
        grads = torch.autograd.grad(result, list(inputs.values()), torch.from_numpy(cotangent))
        for (name, array), grad in zip(arrays.items(), grads, strict=True):
            direction = np.random.default_rng(seed).standard_normal(array.shape)
            stepped = expected(arrays | {name: array + 1e-30j * direction})
            want = (stepped.imag / 1e-30 * cotangent).sum()
            got = (grad.numpy() * direction).sum()
            scale = (abs(grad.numpy()) * abs(direction)).sum() + abs(cotangent).sum()
            assert abs(got - want) < 1e-9 * scale, (seed, name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reduction", REDUCE)
def test_gradcheck_in_float64(reduction, form):
    readout, queries, values = random_readout(3, 2, 2, form=form), torch.randn(3, 3), torch.randn(2, 2, 3)
    queries, values, names = queries.double(), values.double(), list(tensors(readout))

    def function(queries, values, *weights):
        changed = with_tensors(readout, dict(zip(names, weights, strict=True)))
        return evaluate(prepare(changed, queries, reduction), values)

    inputs = [x.requires_grad_() for x in (queries, values, *tensors(readout).values())]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_close_to_float64_as_the_plain_path(backend):
    for seed in range(40):
        torch.manual_seed(seed)
        readout, queries, values = random_problem(seed)
        readout, queries, values = converted(readout, torch.float32), queries.float(), values.float()
        got = evaluate(prepare(readout, queries), values, backend=backend).numpy()
        want = reference_of(readout, queries, values)
        usual = abs(plainly(readout, queries, values).numpy() - want).max()  # more where a final norm cancels
        allowed = 3e-6 * (1 + abs(want).max()) + (0 if readout.final_norm is None else 4 * usual)
        assert abs(got - want).max() <= allowed, seed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_errs_at_most_twice_what_the_plain_path_does(form, dtype, backend):
    readout, queries, values = random_readout(24, 48, 3, form=form), torch.randn(50, 24), torch.randn(2, 6, 24)
    readout, queries, values = converted(readout, dtype), queries.to(dtype), values.to(dtype)
    want, plain = reference_of(readout, queries, values), plainly(readout, queries, values)
    got = evaluate(prepare(readout, queries), values, backend=backend)
    assert got.dtype == dtype

    def error(images):
        return np.sqrt(((images.double().numpy() - want) ** 2).mean())

    assert error(got) <= 2 * error(plain)


def test_autocast_leaves_the_sums_in_float32():
    readout = converted(random_readout(8, 16, 3), torch.float32)
    queries, values = torch.randn(20, 8), torch.randn(1, 4, 8)
    expected = evaluate(prepare(readout, queries), values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(evaluate(prepare(readout, queries), values), expected)


class OnCard(Tensor):
    """A tensor that says it is on a graphics card."""

    device = torch.device("cuda")


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("name", [name for name in ("fp32_precision", "allow_tf32") if hasattr(MATMUL, name)])
def test_tf32_is_forbidden_on_a_card_whatever_is_set(name):
    before, allowed = getattr(MATMUL, name), {"fp32_precision": "tf32", "allow_tf32": True}[name]
    setattr(MATMUL, name, allowed)
    try:
        for like, expected in ((torch.zeros(1).as_subclass(OnCard), ("ieee", False)), (torch.zeros(1), ("tf32", True))):
            with full_precision(like):
                assert getattr(MATMUL, "fp32_precision" if hasattr(MATMUL, "fp32_precision") else name) in expected
            assert getattr(MATMUL, name) == allowed
    finally:
        setattr(MATMUL, name, before)


def test_nearly_opposite_queries_and_values_keep_their_deviation():
    """The three terms of ‖q̃ + c̃‖² cancel here to one part in 10⁴: summed in float32, r would err by 1e-3."""
    readout = converted(random_readout(32, 64, 3, eps=1e-12), torch.float32)
    queries = torch.randn(6, 32)
    values = (-queries * (1 + 0.01 * torch.randn(6, 32)))[None]
    got = evaluate(prepare(readout, queries), values).numpy()
    want = reference_of(readout, queries, values)
    assert abs(got - want).max() < 1e-4 * abs(want).max()


@pytest.mark.parametrize("reduction", REDUCE)
def test_chunks_and_order_of_tokens_change_nothing(reduction):
    readout, queries, values = random_readout(6, 10, 3), torch.randn(9, 6).double(), torch.randn(2, 5, 6).double()
    separated = prepare(readout, queries, reduction)
    whole = evaluate(separated, values)
    for chunk in (1, 3, 10, 99):
        torch.testing.assert_close(evaluate(separated, values, chunk=chunk), whole, rtol=1e-13, atol=1e-13)
    order = torch.randperm(5)
    torch.testing.assert_close(evaluate(separated, values[:, order]), whole[:, order], rtol=1e-13, atol=1e-13)


def test_pooling_chunk_by_chunk_is_pooling_the_maps():
    readout, queries, values = random_readout(6, 10, 3), torch.randn(16, 6).double(), torch.randn(2, 5, 6).double()

    def quadrants(maps):
        return maps.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)

    for reduction, tail in (("none", (3,)), ("mean", ()), ("l2", ())):
        separated = prepare(readout, queries, reduction)
        pooled = evaluate(separated, values, chunk=3, pool=quadrants)
        assert pooled.shape == (2, 5, 4, *tail)
        torch.testing.assert_close(pooled.flatten(0, 1), quadrants(evaluate(separated, values).flatten(0, 1)))


def test_no_tokens_give_no_maps():
    readout, queries = random_readout(6, 10, 3), torch.randn(9, 6).double()
    assert evaluate(prepare(readout, queries), torch.zeros(0, 5, 6).double()).shape == (0, 5, 9, 3)


def test_with_a_final_norm_the_backward_pass_keeps_nothing_the_width_of_it():
    readout = converted(random_readout(32, 64, 3, form="normed"), torch.float32)
    queries, values = torch.randn(50, 32), torch.randn(1, 40, 32, requires_grad=True)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        evaluate(prepare(readout, queries), values, chunk=4)
    assert 0 < sum(kept.values()) < 40 * 50 * 32 * 4 / 4
