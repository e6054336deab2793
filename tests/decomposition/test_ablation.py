import pytest
import torch

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
