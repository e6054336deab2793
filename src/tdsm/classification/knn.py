"""Weighted nearest neighbours, the classifier without training."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def knn_scores(
    queries: Float[Tensor, "queries width"],
    references: Float[Tensor, "references width"],
    labels: Int[Tensor, " references"],
    num_classes: int,
    neighbours: int,
    temperature: float,
    chunk: int = 512,
) -> Float[Tensor, "queries classes"]:
    """Score classes by the cosine-weighted vote of the nearest references.

        score_c(x) = Σ exp(cos(x, x_j) / temperature) over those of the k nearest x_j that have class c

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.
    The queries must not be among the references: a sample is its own nearest neighbour.

    Args:
        neighbours: k; all references when there are fewer.

    Returns:
        Non-negative scores; the largest names the class.
    """
    queries, references = F.normalize(queries, dim=1), F.normalize(references, dim=1)
    scores = []
    for part in queries.split(chunk):
        cosine, nearest = (part @ references.T).topk(min(neighbours, len(references)), dim=1)
        votes = torch.zeros(len(part), num_classes)
        scores.append(votes.scatter_add_(1, labels[nearest], (cosine / temperature).exp()))
    return torch.cat(scores)
