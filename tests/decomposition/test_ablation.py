import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.decomposition import decompose
from tdsm.tokenfield.coords import grid
from tests.conftest import small_field

SIZE = (5, 4)


def without_each(field, tokens, size=SIZE):
    """Run the decoder again without each token."""
    count = tokens.shape[1]
    kept = [[j for j in range(count) if j != k] for k in range(count)]
    return torch.stack([field.decode(tokens[:, indices], size) for indices in kept], dim=1)


def leave_one_out(field, tokens, **options):
    return decompose(field, tokens, SIZE, method="leave_one_out", **options)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("changes", [{}, {"has_query_residual": False}, {"has_decoder_feedforward": False}], ids=str)
def test_it_is_what_running_again_gives(tokens, dtype, bound, changes):
    field, tokens = small_field(dtype, **changes), tokens.to(dtype)
    parts = leave_one_out(field, tokens)
    expected = parts.reconstruction[:, None] - without_each(field, tokens)
    torch.testing.assert_close(parts.components, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 10.0, 30.0, 100.0, 1000.0])
def test_tokens_that_take_all_the_attention(tokens, sharpness):
    field, tokens = small_field(torch.float32), tokens.float()
    with torch.no_grad():
        field.decoder_attention.to_q.weight.mul_(sharpness)
    weights = field.attention_parts(field.queries(grid(SIZE)), tokens).weights
    assert weights.max() > 0.9
    assert bool(((weights > 0).sum(-1) == 1).any()) == (sharpness >= 30), "only then all others underflow"
    parts = leave_one_out(field, tokens)
    torch.testing.assert_close(
        parts.reconstruction[:, None] - parts.components, without_each(field, tokens), rtol=1e-5, atol=1e-5
    )


def test_without_the_only_token_the_base_is_left(field, tokens):
    parts = leave_one_out(field, tokens[:, :1])
    torch.testing.assert_close(parts.components[:, 0], parts.reconstruction - parts.base)
    assert parts.completeness_error.max() < 1e-12


def test_gradients(field, tokens):
    tokens = (3 * tokens[:1, :3]).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: decompose(field, z, (2, 2), method="leave_one_out").components, tokens, fast_mode=True
    )


def test_gradients_are_finite_where_a_token_takes_all(field, tokens):
    with torch.no_grad():
        field.decoder_attention.to_q.weight.mul_(1e4)
    tokens = tokens.clone().requires_grad_()
    leave_one_out(field, tokens).components.sum().backward()
    assert tokens.grad.isfinite().all()


def sharp(field, sharpness=3.0):
    """A field whose attention is peaked."""
    with torch.no_grad():
        field.decoder_attention.to_q.weight.mul_(sharpness)
    return field


@pytest.mark.parametrize("threshold", [1e-4, 1e-2, 0.1, 0.4])
def test_a_threshold_leaves_heavy_tokens_exact_and_bounds_how_far_light_ones_move(field, tokens, threshold):
    exact, spared = leave_one_out(sharp(field), tokens), leave_one_out(field, tokens, threshold=threshold)
    queries = field.queries(grid(SIZE))
    weights, values, bias = field.attention_parts(queries, tokens)
    is_heavy = (weights > threshold).any(1).mT
    assert 0 < is_heavy.double().mean() < 1
    heavy = is_heavy.unflatten(2, SIZE)
    torch.testing.assert_close(spared.components[heavy], exact.components[heavy], rtol=1e-12, atol=1e-12)

    attended = field.attend(queries, tokens)
    kept = [[j for j in range(5) if j != k] for k in range(5)]
    moved = torch.stack([(field.attend(queries, tokens[:, rest]) - attended).norm(dim=-1) for rest in kept], 1)
    share = moved / (attended - bias).norm(dim=-1)[:, None]
    assert 0 < share[~is_heavy].max() <= spared.movement.max()
    everything = (weights / (1 - weights))[..., None] * (values[:, :, None] - (weights @ values)[:, :, :, None])
    triangle = everything.norm(dim=-1).sum(1) / (attended - bias).norm(dim=-1)[..., None]
    expected = triangle.mT.masked_fill(is_heavy, 0).flatten(1).amax(1)
    torch.testing.assert_close(spared.movement, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", [{}, {"has_query_residual": False}], ids=["separated", "autograd"])
def test_what_light_tokens_lose_is_of_second_order(tokens, changes):
    """Scaling the attention's output scales how far a token moves a point, and its error with the square of that."""
    field, errors = sharp(small_field(**changes)), []
    with torch.no_grad():
        for _ in range(3):
            field.decoder_attention.to_out.weight.div_(10)
            exact, spared = leave_one_out(field, tokens), leave_one_out(field, tokens, threshold=0.5)
            errors.append((spared.components - exact.components).norm() / exact.components.norm())
    assert errors[-1] < 1e-3
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_a_linear_readout_loses_nothing(tokens):
    field = small_field(has_decoder_feedforward=False)
    exact, spared = leave_one_out(field, tokens), leave_one_out(field, tokens, threshold=0.9)
    torch.testing.assert_close(spared.components, exact.components, rtol=1e-10, atol=1e-11)


def test_the_smaller_the_threshold_the_smaller_error_and_bound(field, tokens):
    exact = leave_one_out(sharp(field), tokens).components
    runs = [leave_one_out(field, tokens, threshold=threshold) for threshold in (0.3, 3e-2, 3e-3, 3e-4)]
    errors = [(run.components - exact).abs().max().item() for run in runs]
    bounds = [run.movement.max().item() for run in runs]
    assert errors == sorted(errors, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert errors[-1] < 1e-5 * errors[0]


def test_without_a_threshold_nothing_moves(field, tokens):
    assert leave_one_out(field, tokens).movement is None


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_threshold_and_a_chunk(field, tokens, chunk):
    whole = leave_one_out(sharp(field), tokens, threshold=0.1)
    parts = leave_one_out(field, tokens, threshold=0.1, chunk=chunk)
    torch.testing.assert_close(parts.components, whole.components, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.movement, whole.movement, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_is_an_attention_weight(field, tokens, threshold):
    with pytest.raises(UsageError, match="threshold is"):
        leave_one_out(field, tokens, threshold=threshold)


def test_gradients_with_a_threshold(field, tokens):
    tokens = (3 * tokens[:1, :3]).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: decompose(field, z, (2, 2), method="leave_one_out", threshold=0.05).components, tokens, fast_mode=True
    )
