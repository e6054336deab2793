import numpy as np
import pytest
import torch

from tdsm.classification.knn import knn_scores


def brute_force(queries, references, labels, classes, k, temperature):
    """Vote in float64 NumPy, one query and one neighbour after the other."""
    scores = np.zeros((len(queries), classes))
    for i, query in enumerate(queries.astype(np.float64)):
        cosines = [query @ x / np.linalg.norm(query) / np.linalg.norm(x) for x in references.astype(np.float64)]
        for j in np.argsort(cosines)[::-1][:k]:
            scores[i, labels[j]] += np.exp(cosines[j] / temperature)
    return scores


@pytest.mark.parametrize("k", [1, 5, 29, 30, 200])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_vote_is_the_definition(k, temperature):
    queries, references, labels = torch.randn(17, 6), torch.randn(30, 6), torch.randint(4, (30,))
    expected = brute_force(queries.numpy(), references.numpy(), labels.numpy(), 4, k, temperature)
    for chunk in (1, 5, 512):
        scores = knn_scores(queries, references, labels, 4, k, temperature, chunk=chunk)
        np.testing.assert_allclose(scores.numpy(), expected, rtol=2e-4)


def test_length_does_not_matter():
    queries, references, labels = torch.randn(5, 6), torch.randn(9, 6), torch.randint(3, (9,))
    scores = knn_scores(queries, references, labels, 3, 4, 0.1)
    longer = knn_scores(7 * queries, references * torch.rand(9, 1), labels, 3, 4, 0.1)
    torch.testing.assert_close(scores, longer, rtol=1e-3, atol=1e-3)


def test_a_vector_of_zeros_has_a_finite_score():
    assert knn_scores(torch.zeros(1, 3), torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), 2, 3, 0.1).isfinite().all()
