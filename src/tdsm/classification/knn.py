"""Weighted nearest neighbours, the classifier without training."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Cosines = Float[Tensor, "queries neighbours"]  # the nearest first
Block = tuple[Float[Tensor, "block width"], Int[Tensor, " block"]]  # references and their labels


def nearest(
    queries: Float[Tensor, "queries width"], references: Iterable[Block], neighbours: int
) -> tuple[Cosines, Int[Tensor, "queries neighbours"]]:
    """Find the nearest references of each query by cosine, block by block: a running top-k.

    Memory does not grow with the number of references. The queries must not be among them: a sample is its own
    nearest neighbour.

    >>> cosines, labels = nearest(torch.eye(2), [(torch.eye(2), torch.tensor([7, 8]))], neighbours=1)
    >>> labels.flatten()
    tensor([7, 8])

    Returns:
        Cosines in [-1, 1] and labels of the neighbours, the nearest first; all references when there are fewer.
    """
    queries = F.normalize(queries, dim=1)
    best, found = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for vectors, labels in references:
        cosines = torch.cat([best, queries @ F.normalize(vectors, dim=1).T], dim=1)
        labelled = torch.cat([found, labels.expand(len(queries), -1)], dim=1)
        best, where = cosines.topk(min(neighbours, cosines.shape[1]), dim=1)
        found = labelled.gather(1, where)
    return best, found


def votes(
    cosines: Cosines, labels: Int[Tensor, "queries neighbours"], num_classes: int, temperature: float
) -> Float[Tensor, "queries classes"]:
    """Score classes by the cosine-weighted vote of neighbours.

        score_c(x) = Σ exp((cos(x, x_j) − cos(x, x_1)) / temperature) over the neighbours x_j that have class c

    The nearest counts 1, whatever the temperature above 0, so nothing overflows.
    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.

    Returns:
        Non-negative scores in float64; the largest names the class.
    """
    weights = ((cosines - cosines[:, :1]).double() / temperature).exp()
    return weights.new_zeros(len(cosines), num_classes).scatter_add_(1, labels, weights)
