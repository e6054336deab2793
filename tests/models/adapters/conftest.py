"""What every adapted model must satisfy, whatever package it comes from."""

import pytest
import torch

from tdsm.decomposition import decompose
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.coords import grid


def _check_field(field: TokenField, tokens: torch.Tensor, size: tuple[int, ...]) -> None:
    """Check the interface's equations, and that additive and leave-one-out components work and carry space."""
    queries = field.queries(grid(size))
    attended = field.attend(queries, tokens)
    parts = field.attention_parts(queries, tokens)
    torch.testing.assert_close(
        parts.bias + torch.einsum("bhnk,bhkd->bnd", parts.weights, parts.values), attended, rtol=1e-5, atol=1e-5
    )
    alone = field.attend_one(tokens)
    for k in range(tokens.shape[1]):
        expected = field.attend(queries, tokens[:, k : k + 1])
        torch.testing.assert_close(alone[:, k : k + 1].expand_as(expected), expected, rtol=1e-5, atol=1e-5)

    additive = decompose(field, tokens, size, method="additive", points=64)
    assert additive.completeness_error.max() < 1e-4
    assert additive.components.flatten(2, -2).std(2).max() > 1e-6, "constant in space"

    without = decompose(field, tokens, size, method="leave_one_out")
    assert without.components.flatten(2, -2).std(2).max() > 1e-6, "constant in space"
    for k in range(tokens.shape[1]):
        others = torch.cat([tokens[:, :k], tokens[:, k + 1 :]], dim=1)
        again = field.decode(others, size)
        torch.testing.assert_close(without.reconstruction - without.components[:, k], again, rtol=1e-5, atol=1e-5)


@pytest.fixture
def check_field():
    return _check_field
