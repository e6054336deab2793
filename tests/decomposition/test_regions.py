import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm import contributions, decompose
from tdsm.base.errors import SpaceWarning, UsageError
from tdsm.models.adapters.shape import shape_field
from tests.conftest import small_field
from tests.models.adapters import shape_modules as own
from tests.models.adapters.test_shape import MODELS, latents_of, randomised

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("solo", "additive", "leave_one_out", "attention", "shapley")
POINTS = 23


@pytest.fixture
def coords():
    return 2 * torch.rand(POINTS, 2, dtype=torch.float64) - 1


@pytest.fixture
def labels():
    return torch.arange(POINTS) % 4 - 1


def summed(images, weights):
    """Sum (batch, *, points, channels) over regions: the equation itself."""
    return torch.einsum("pr,b...pc->br...c", weights.double(), images.double())


@pytest.mark.parametrize("method", METHODS)
def test_they_are_the_components_summed_over_each_region(field, tokens, coords, labels, method):
    whole = decompose(field, tokens, coords=coords, method=method)
    parts = contributions(field, tokens, coords, labels, method=method)
    weights = torch.stack([labels == region for region in range(3)], 1)
    expected = summed(whole.components, weights)
    torch.testing.assert_close(parts.components, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.base, summed(whole.base, weights), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.reconstruction, summed(whole.reconstruction, weights), rtol=1e-10, atol=1e-12)
    assert parts.weight.tolist() == weights.sum(0).tolist()
    assert parts.components.shape == (2, 3, 5, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_additive_ones_add_up_over_a_partition(name, dtype):
    field = shape_field(randomised(MODELS[name](), dtype))
    tokens, coords = field.encode(latents_of(field.model)), 2 * torch.rand(200, 3) - 1
    octant = ((coords > 0) * torch.tensor([4, 2, 1])).sum(1)
    starts_from_nothing = not field.has_query_residual and field.has_nonlinear_readout
    parts = contributions(field, tokens, coords, octant, points=16 if starts_from_nothing else 8)
    assert parts.completeness_error.max() <= 1e-5
    whole = contributions(field, tokens, coords, torch.zeros(200).long(), points=8)
    change = (whole.reconstruction - whole.base)[:, 0]
    torch.testing.assert_close(parts.components.sum((1, 2)), change, rtol=1e-5, atol=1e-5 * float(change.abs().max()))


def test_float32_adds_up_to_rounding(coords, labels):
    field, tokens = small_field(torch.float32), torch.randn(2, 5, 14)
    parts = contributions(field, tokens, coords.float(), labels, points=16)
    assert parts.completeness_error.max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
@given(chunk=st.integers(1, 60))
def test_the_chunk_changes_nothing(method, chunk):
    torch.manual_seed(0)
    field, tokens = small_field(), torch.randn(3, 5, 14, dtype=torch.float64)
    coords, labels = 2 * torch.rand(POINTS, 2) - 1, torch.arange(POINTS) % 4 - 1
    whole = contributions(field, tokens, coords, labels, method=method, chunk=10**6)
    parts = contributions(field, tokens, coords, labels, method=method, chunk=chunk)
    for seen, expected in zip((parts.components, parts.base), (whole.components, whole.base), strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-12)


def test_the_order_of_the_points_changes_nothing(field, tokens, coords, labels):
    order = torch.randperm(POINTS)
    parts = contributions(field, tokens, coords, labels)
    shuffled = contributions(field, tokens, coords[order], labels[order])
    torch.testing.assert_close(shuffled.components, parts.components, rtol=1e-10, atol=1e-12)


def test_weights_weigh(field, tokens, coords, labels):
    weights = torch.randn(POINTS, 2)
    parts = contributions(field, tokens, coords, weights)
    whole = decompose(field, tokens, coords=coords, method="additive")
    torch.testing.assert_close(parts.components, summed(whole.components, weights), rtol=1e-10, atol=1e-12)
    ones = torch.stack([labels == region for region in range(3)], 1)
    expected = contributions(field, tokens, coords, labels).components
    for same in (ones, ones.float(), ones.long()):
        torch.testing.assert_close(contributions(field, tokens, coords, same).components, expected)


def test_a_box_holds_what_lies_in_it_faces_included(field, tokens):
    coords = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.0, -0.1]])
    boxes = torch.tensor([[[-1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]], [[3.0, 3.0], [4.0, 4.0]]])
    parts = contributions(field, tokens, coords, boxes)
    inside = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(parts.components, contributions(field, tokens, coords, inside).components)
    assert parts.weight.tolist() == [3, 3, 0]
    assert not parts.components[:, 2].any()
    half = contributions(field, tokens, coords, torch.tensor([[[0.0, -torch.inf], [torch.inf, torch.inf]]]))
    assert half.weight.tolist() == [4]


def test_regions_without_any_point_are_zero(field, tokens, coords):
    parts = contributions(field, tokens, coords, torch.tensor([[[5.0, 5.0], [6.0, 6.0]]]))
    assert parts.components.shape == (2, 1, 5, 3)
    assert not parts.components.any()
    assert parts.weight.tolist() == [0]
    assert parts.completeness_error.tolist() == [0, 0]


def test_points_of_no_region_are_not_decoded(field, tokens, coords, monkeypatch):
    seen = []
    embed = field.queries
    monkeypatch.setattr(field, "queries", lambda coords: seen.append(len(coords)) or embed(coords))
    labels = torch.full((POINTS,), -1)
    labels[3] = 0
    contributions(field, tokens, coords, labels, chunk=2)
    assert max(seen) == 1


def test_the_attention_sum_is_what_the_region_looks_at(field, tokens, coords, labels):
    parts = contributions(field, tokens, coords, labels, method="attention")
    weights = field.token_heads(tokens).weights(field.query_heads(field.queries(coords))).mean(1)
    torch.testing.assert_close(parts.components[:, 1, :, 0], weights[:, labels == 1].sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.components.sum(2)[..., 0], parts.weight.expand(2, -1), rtol=1e-10, atol=1e-12)


def test_a_threshold_is_that_of_leave_one_out(field, tokens, coords, labels):
    whole = decompose(field, tokens, coords=coords, method="leave_one_out", threshold=0.2)
    parts = contributions(field, tokens, coords, labels + 1, method="leave_one_out", threshold=0.2, chunk=7)
    torch.testing.assert_close(parts.movement, whole.movement, rtol=1e-10, atol=1e-12)
    exact = contributions(field, tokens, coords, labels + 1, method="leave_one_out")
    assert not exact.movement.any()
    assert not torch.equal(exact.components, parts.components)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_a_tolerance_chooses_the_points(field, tokens, coords, labels, tolerance):
    parts = contributions(field, tokens, coords, labels, points=1, tolerance=tolerance)
    assert parts.completeness_error.max() <= tolerance
    half = contributions(field, tokens, coords, labels, points=parts.options.points // 2)
    assert half.completeness_error.max() > tolerance


def test_no_graph_is_kept(field, tokens, coords, labels):
    assert not contributions(field, tokens.requires_grad_(), coords, labels).components.requires_grad


def test_solo_without_space_says_so(coords, labels):
    field = small_field(has_query_residual=False)
    with pytest.warns(SpaceWarning, match="query residual"):
        contributions(field, torch.randn(1, 5, 14).double(), coords, labels, method="solo")


@pytest.mark.parametrize(
    "regions",
    [
        torch.zeros(4).long(),
        torch.full((POINTS,), -1),
        torch.full((POINTS,), -2),
        torch.zeros(POINTS),
        torch.zeros(POINTS, dtype=torch.bool),
        torch.zeros(POINTS, 0),
        torch.full((POINTS, 1), torch.nan),
        torch.zeros(2, 3, 2),
        torch.zeros(0, 2, 2),
        torch.zeros(2, 2, 3),
        torch.tensor(3),
    ],
    ids=str,
)
def test_regions_that_do_not_fit_are_refused(field, tokens, coords, regions):
    with pytest.raises(UsageError, match=r"contributions: regions are .* expected .*labels \(23,\).*boxes"):
        contributions(field, tokens, coords, regions)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "other"}, "other"),
        ({"method": "mixture"}, "does not decompose"),
        ({"points": 0}, "quadrature points"),
        ({"threshold": 0.1}, "leave_one_out"),
        ({"method": "leave_one_out", "threshold": 1.0}, "threshold is 1.0"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_requests_that_do_not_fit_are_refused(field, tokens, coords, labels, options, words):
    with pytest.raises(UsageError, match=words):
        contributions(field, tokens, coords, labels, **options)


PEAK = """
import resource, sys, torch
torch.set_num_threads(1)
from tdsm import contributions, decompose
from tdsm.models.adapters.shape import shape_field
from tests.models.adapters.shape_modules import ShapeVAE
points = int(sys.argv[1])
field = shape_field(ShapeVAE().eval())
tokens, coords = torch.randn(1, 2000, field.token_width), 2 * torch.rand(points, 3) - 1
contributions(field, tokens, coords, torch.arange(points) % 16, chunk=256)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_flat_in_the_points():
    """One point more holds its coordinates and label, not a number a token: 20 B instead of 8000."""

    def peak(points):
        done = subprocess.run([sys.executable, "-c", PEAK, str(points)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return 1024 * int(done.stdout)

    assert peak(16_000) - peak(2_000) < 14_000 * 2_000  # a quarter of one number a (point, token)
    assert own.HEADS * 256 * 2_000 * 4 < 14_000 * 2_000, "a chunk's weights are no smaller than what is looked for"
