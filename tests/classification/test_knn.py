import numpy as np
import pytest
import torch

from tdsm.classification.knn import nearest, votes


def knn_scores(queries, references, labels, num_classes, neighbours, temperature):
    """Vote with all references in one block."""
    return votes(*nearest(queries, [(references, labels)], neighbours), num_classes, temperature)


def brute_force(queries, references, labels, classes, k, temperature):
    """Vote in float64 NumPy, one query and one neighbour after the other."""
    scores = np.zeros((len(queries), classes))
    for i, query in enumerate(queries.astype(np.float64)):
        cosines = [query @ x / np.linalg.norm(query) / np.linalg.norm(x) for x in references.astype(np.float64)]
        for j in np.argsort(cosines)[::-1][:k]:
            scores[i, labels[j]] += np.exp((cosines[j] - max(cosines)) / temperature)
    return scores


@pytest.mark.parametrize("k", [1, 5, 29, 30, 200])
@pytest.mark.parametrize("temperature", [1e-4, 0.005, 0.07, 1.0])
def test_the_vote_is_the_definition(k, temperature):
    queries, references, labels = torch.randn(17, 6), torch.randn(30, 6), torch.randint(4, (30,))
    expected = brute_force(queries.numpy(), references.numpy(), labels.numpy(), 4, k, temperature)
    np.testing.assert_allclose(
        knn_scores(queries, references, labels, 4, k, temperature), expected, rtol=1e-2, atol=1e-9
    )
    for size in (1, 7, 30):
        blocks = zip(references.split(size), labels.split(size), strict=True)
        scores = votes(*nearest(queries, blocks, k), 4, temperature)
        np.testing.assert_allclose(scores, expected, rtol=1e-2, atol=1e-9)
        assert (scores.argmax(1).numpy() == expected.argmax(1)).all()


def test_length_does_not_matter():
    queries, references, labels = torch.randn(5, 6), torch.randn(9, 6), torch.randint(3, (9,))
    scores = knn_scores(queries, references, labels, 3, 4, 0.1)
    longer = knn_scores(7 * queries, references * torch.rand(9, 1), labels, 3, 4, 0.1)
    torch.testing.assert_close(scores, longer, rtol=1e-3, atol=1e-3)


def test_a_vector_of_zeros_has_a_finite_score():
    assert knn_scores(torch.zeros(1, 3), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), 2, 3, 0.1).isfinite().all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.005, 0.1, 100.0])
def test_no_temperature_above_zero_overflows(temperature):
    """Two classes apart by far: the vote of the nearest is right, however small the temperature."""
    labels = torch.arange(40) % 2
    references = torch.randn(40, 3) * 0.1 + torch.tensor([1.0, 0, 0]) * (2 * labels[:, None] - 1)
    scores = knn_scores(references + 0.01, references, labels, 2, 20, temperature)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), labels)
