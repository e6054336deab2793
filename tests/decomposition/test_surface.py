import sys

import pytest
import torch

from tdsm import decompose
from tdsm.base.errors import ResourceError, UsageError
from tdsm.decomposition import surface as module
from tdsm.decomposition.surface import decode_surface, strongest_token, token_contribution
from tests.conftest import small_field

RADIUS = 0.6


@pytest.fixture
def field():
    return small_field(num_axes=3)


@pytest.fixture
def tokens(field):
    return torch.randn(1, 5, 14, dtype=torch.float64)


@pytest.fixture
def ball(field, monkeypatch):
    """A field that decodes a ball beside the middle, flattened along the first axis."""
    squash, middle = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([0.1, 0.2, -0.2])
    ball = lambda tokens, coords: (RADIUS - ((coords - middle) * squash).norm(dim=-1))[None, :, None]  # noqa: E731
    monkeypatch.setattr(field, "decode", ball)
    return field


@pytest.mark.parametrize("chunk", [100, 2**13])
def test_the_surface_is_where_values_cross_the_level(ball, tokens, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    vertices, faces = decode_surface(ball, tokens, (31, 25, 40))
    away = (vertices - torch.tensor([0.1, 0.2, -0.2])) * torch.tensor([2.0, 1.0, 1.0])
    assert (away.norm(dim=1) - RADIUS).abs().max() < 0.02
    volume = torch.linalg.det(vertices[faces]).sum() / 6  # positive: corners are counter-clockwise seen from outside
    assert volume == pytest.approx(4 / 3 * torch.pi * RADIUS**3 / 2, rel=0.05)


def test_points_on_it_are_told_their_strongest_token(field, tokens, monkeypatch):
    coords = 2 * torch.rand(40, 3, dtype=torch.float64) - 1
    parts = decompose(field, tokens, coords=coords, method="additive").components[0].sum(-1)
    assert strongest_token(field, tokens, coords).tolist() == parts.argmax(0).tolist()
    torch.testing.assert_close(token_contribution(field, tokens, coords, 3), parts[3])
    looked = decompose(field, tokens, coords=coords, method="attention").components[0].sum(-1)
    assert strongest_token(field, tokens, coords, method="attention").tolist() == looked.argmax(0).tolist()


def test_what_has_no_surface_is_said(ball, tokens):
    with pytest.raises(UsageError, match="do not cross the level 3"):
        decode_surface(ball, tokens, (9, 9, 9), level=3.0)
    with pytest.raises(UsageError, match="at least 2"):
        decode_surface(ball, tokens, (9, 9, 1))
    with pytest.raises(UsageError, match="of one shape"):
        decode_surface(ball, tokens.expand(2, -1, -1), (9, 9, 9))
    with pytest.raises(UsageError, match="2 axes"):
        decode_surface(ball, tokens, (9, 9))


def test_a_missing_package_is_named(ball, tokens, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(ResourceError, match=r"tdsm\[shapes\]"):
        decode_surface(ball, tokens, (9, 9, 9))
