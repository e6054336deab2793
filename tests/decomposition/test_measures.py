import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.errors import UsageError
from tdsm.base.statistics import psnr
from tdsm.decomposition.measures import (
    between_image_share,
    class_selectivity,
    completeness_error,
    deletion_curve,
    effective_rank,
    insertion_curve,
    match_tokens,
    positional_constants,
    rank_by_energy,
    redundancy,
    spatial_spread,
    stability,
)

SHAPE = (2, 5, 4, 3, 3)


@pytest.fixture
def images():
    return torch.randn(SHAPE, dtype=torch.float64)


def test_completeness_error_is_its_equation(images):
    base, reconstruction = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    for b in range(2):
        missed = base[b] + images[b].sum(0) - reconstruction[b]
        expected = np.linalg.norm(missed) / np.linalg.norm(reconstruction[b] - base[b])
        assert completeness_error(images, base, reconstruction)[b].item() == pytest.approx(expected)


def test_completeness_error_at_its_ends(images):
    base = torch.zeros_like(images[:, 0])
    assert torch.equal(completeness_error(images, base, images.sum(1)), torch.zeros(2))
    nothing = torch.zeros_like(images)
    torch.testing.assert_close(completeness_error(nothing, base, images.sum(1)), torch.ones(2).double())
    assert torch.equal(completeness_error(nothing, base, base), torch.zeros(2)), "nothing to explain, all explained"
    assert completeness_error(images, base, base).isinf().all()


def test_redundancy_is_the_mean_of_numpys_correlations(images):
    for b in range(2):
        matrix = np.corrcoef(images[b].flatten(1).numpy())
        expected = np.abs(matrix[np.triu_indices(5, 1)]).mean()
        assert redundancy(images)[b].item() == pytest.approx(expected)


def test_redundancy_at_its_ends(images):
    copies = images[:, :1] * torch.tensor([1.0, -2.0, 0.5])[:, None, None, None] + 4
    torch.testing.assert_close(redundancy(copies), torch.ones(2).double())
    assert torch.equal(redundancy(images[:, :1]), torch.zeros(2))
    assert torch.equal(redundancy(torch.full_like(images, 0.1)), torch.zeros(2)), "constants correlate with nothing"


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_counts_equal_directions(rank):
    directions = torch.eye(36, dtype=torch.float64)[:rank].repeat(5 // rank + 1, 1)[: 5 // rank * rank]
    components = directions.reshape(1, -1, 4, 3, 3)
    torch.testing.assert_close(effective_rank(components), torch.tensor([float(rank)]).double())


@pytest.mark.parametrize("sizes", [(3.0, 1.0), (5.0, 2.0, 1.0)])
def test_effective_rank_weighs_directions_by_their_size_not_its_square(sizes):
    components = (torch.diag(torch.tensor(sizes, dtype=torch.float64)) @ torch.eye(36).double()[: len(sizes)])[None]
    share = np.array(sizes) / sum(sizes)
    expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(components.reshape(1, -1, 4, 3, 3)).item() == pytest.approx(expected)


def test_effective_rank_at_its_ends(images):
    assert torch.equal(effective_rank(torch.zeros_like(images)), torch.zeros(2))
    assert (effective_rank(images) <= 5).all()
    torch.testing.assert_close(effective_rank(7 * images), effective_rank(images))


def test_spread_at_its_ends(images):
    point = torch.zeros_like(images)
    point[..., 1, 2, :] = 3.0
    assert torch.equal(spatial_spread(point), torch.zeros(2, 5))
    torch.testing.assert_close(spatial_spread(torch.full_like(images, -0.2)), torch.ones(2, 5).double())
    assert torch.equal(spatial_spread(torch.zeros_like(images)), torch.zeros(2, 5))
    assert torch.equal(spatial_spread(torch.ones(1, 2, 1, 3)), torch.zeros(1, 2)), "one point"


def test_spread_of_half_the_points():
    components = torch.zeros(1, 1, 16, 1)
    components[:, :, :4] = 1
    torch.testing.assert_close(spatial_spread(components), torch.tensor([[0.5]]))  # log 4 / log 16


@given(st.integers(-3, 3), st.integers(-2, 2))
def test_stability_finds_shifted_content(rows, columns):
    scene = torch.randn(1, 2, 10, 9, 3)
    before, after = scene[:, :, 3:7, 3:6], scene[:, :, 3 - rows : 7 - rows, 3 - columns : 6 - columns]
    torch.testing.assert_close(stability(before, after, (rows, columns)), torch.ones(1, 2))


def test_stability_at_its_ends(images):
    torch.testing.assert_close(stability(images, 3 * images + 1), torch.ones(2, 5).double())
    torch.testing.assert_close(stability(images, -images), -torch.ones(2, 5).double())
    assert torch.equal(stability(images, torch.ones_like(images)), torch.zeros(2, 5))
    assert stability(images, torch.randn_like(images)).abs().max() < 0.6


def test_stability_of_other_images_is_refused(images):
    with pytest.raises(UsageError, match="equal shapes"):
        stability(images, images[:, :4])


@pytest.mark.parametrize(("shift", "words"), [((4, 0), "no points in common"), ((1,), "one shift an axis")])
def test_stability_refuses(images, shift, words):
    with pytest.raises(UsageError, match=words):
        stability(images, images, shift)


@given(st.permutations(range(5)))
def test_matching_undoes_a_permutation(order):
    images = torch.randn(SHAPE, dtype=torch.float64)
    others = torch.cat([0.5 * images[:, order] + 1, torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)], dim=1)
    counterpart, similarity = match_tokens(images, others)
    assert [order[index] for index in counterpart] == list(range(5))
    torch.testing.assert_close(similarity, torch.ones(5).double())


def test_matching_is_the_best_of_all_assignments():
    from itertools import permutations

    one, other = torch.randn(2, 3, 4, 6, 1), torch.randn(2, 3, 4, 6, 1)[:, :3]
    one = one[:, :3]
    similarity = torch.stack(
        [torch.stack([stability(one[:, [k]], other[:, [l]]).mean() for l in range(3)]) for k in range(3)]
    )
    best = max(sum(similarity[k, p[k]] for k in range(3)) for p in permutations(range(3)))
    torch.testing.assert_close(match_tokens(one, other)[1].sum(), best)


@pytest.mark.parametrize("others", [torch.zeros(2, 4, 4, 3, 3), torch.zeros(2, 5, 4, 4, 3)], ids=["fewer", "points"])
def test_matching_refuses(images, others):
    with pytest.raises(UsageError, match="match_tokens"):
        match_tokens(images, others.double())


def test_the_share_between_images_at_its_ends():
    token = torch.randn(1, 5, 7).expand(4, 5, 7)
    assert torch.equal(between_image_share(token), torch.zeros(5))
    image = torch.randn(4, 1, 7).expand(4, 5, 7)
    torch.testing.assert_close(between_image_share(image), torch.ones(5))
    assert torch.equal(between_image_share(torch.zeros(4, 5, 7)), torch.zeros(5))


def test_the_share_is_a_law_of_total_variance():
    features = torch.randn(6, 5, 7, dtype=torch.float64)
    total = (features - features.mean((0, 1))).square().sum(-1).mean(0)
    within = (features - features.mean(0)).square().sum(-1).mean(0)
    torch.testing.assert_close(between_image_share(features), within / total)


def test_constants_of_their_position_are_named():
    features = torch.randn(6, 5, 4, 4, 3)
    features[:, [1, 3]] = torch.randn(1, 2, 4, 4, 3)
    assert positional_constants(features) == [1, 3]
    assert positional_constants(features, threshold=0.0) == []


def test_selectivity_is_the_share_of_an_analysis_of_variance():
    from scipy.stats import f_oneway

    labels = torch.tensor([0, 2, 1, 0, 1, 2, 2, 0, 1, 0])
    components = torch.randn(10, 3, 4, 2, 1, dtype=torch.float64) + labels[:, None, None, None, None]
    pooled = components.mean((2, 3))[..., 0]
    for k, share in enumerate(class_selectivity(components, labels)):
        ratio = f_oneway(*(pooled[labels == y, k].numpy() for y in range(3))).statistic
        assert share.item() == pytest.approx(2 * ratio / (2 * ratio + 7))


def test_selectivity_at_its_ends():
    labels = torch.tensor([0, 1, 5, 5, 1, 0])
    components = labels.float()[:, None, None, None, None].expand(6, 2, 3, 3, 3)
    torch.testing.assert_close(class_selectivity(components, labels), torch.ones(2))
    assert torch.equal(class_selectivity(torch.zeros(6, 2, 3, 3, 3), labels), torch.zeros(2))


def test_tokens_are_ranked_by_energy():
    components = torch.tensor([[1.0, -4.0, 2.0], [0.0, 0.1, 0.0]])[:, :, None, None] * torch.ones(2, 3, 5, 3)
    assert rank_by_energy(components).tolist() == [[1, 2, 0], [1, 0, 2]]


def test_curves_are_psnrs_of_running_again(field, tokens):
    rank = torch.tensor([[3, 1, 0, 4, 2], [0, 1, 2, 3, 4]])
    images = torch.rand(2, 4, 3, 3, dtype=torch.float64)
    deleted = deletion_curve(field, tokens, rank, images, [0, 2, 4], size=(4, 3))
    inserted = insertion_curve(field, tokens, rank, images, [5, 3, 1], size=(4, 3))
    for b in range(2):
        for step, count in enumerate([0, 2, 4]):
            left = field.decode(tokens[b : b + 1, rank[b, count:]], (4, 3))
            torch.testing.assert_close(deleted[b, step], psnr(images[b : b + 1], left)[0])
            there = field.decode(tokens[b : b + 1, rank[b, : 5 - count]], (4, 3))
            torch.testing.assert_close(inserted[b, step], psnr(images[b : b + 1], there)[0])


def test_curves_meet_at_their_ends(field, tokens):
    rank, images = torch.arange(5).expand(2, -1), field.decode(tokens, (12,) * 2)
    images = images.clamp(-1, 1)
    deleted = deletion_curve(field, tokens, rank, images, [0, 5], size=(12, 12))
    inserted = insertion_curve(field, tokens, rank, images, [5, 0], size=(12, 12))
    torch.testing.assert_close(deleted, inserted)
    assert (deleted[:, 0] == 100).all()
    assert (deleted[:, 1] < 60).all()


def test_curves_take_scattered_points(field, tokens):
    coords = torch.rand(7, 2) * 2 - 1
    images = field.decode(tokens, coords=coords)
    curve = deletion_curve(field, tokens, torch.arange(5).expand(2, -1), images, [1], coords=coords)
    assert curve.shape == (2, 1)


@pytest.mark.parametrize(
    ("rank", "counts", "size"), [((2, 5), [6], (4, 3)), ((2, 4), [1], (4, 3)), ((2, 5), [1], (4, 4))], ids=str
)
def test_curves_refuse(field, tokens, rank, counts, size):
    with pytest.raises(UsageError, match="curve"):
        deletion_curve(
            field, tokens, torch.zeros(rank, dtype=torch.long), torch.zeros(2, 4, 3, 3).double(), counts, size
        )
