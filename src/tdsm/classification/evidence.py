"""Which tokens speak for a class, and where: a class score shared out among all values of the maps.

A class score is known only up to what all classes share, so it is counted from their mean: s_c − mean_c' s_c'. Along
the straight path from the training mean μ, where standardised maps are 0, to the maps of an image,

    E(place, k) = (x_k − μ_k)(place) · ∫₀¹ ∂s(μ + t (x − μ)) / ∂x_k(place) dt       (Gauss–Legendre, m points)
    Σ E + s(μ)  = s(x)                                                                (as m grows)

These are integrated gradients (Sundararajan et al. 2017) from the mean map. A linear head's gradient is the same
everywhere, so for `avg` and for `flatten` without a hidden layer one point is exact: E is weight times value. For
any other head the completeness error says how far the sum is from the score.
"""

from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.classification.heads import Logits, Maps, TDSMClassifier
from tdsm.decomposition.path_gradient import gauss_legendre

MOST_POINTS = 256


@dataclass(frozen=True)
class Evidence:
    """What every value of the maps says for one class an image, in units of the class score (logits)."""

    classes: Int[Tensor, " batch"]  # what the evidence is for
    values: Float[Tensor, "batch height width maps"]  # positive speaks for the class, negative against it
    base: Float[Tensor, " batch"]  # the score of the mean maps, before anything of the image is seen
    score: Float[Tensor, " batch"]  # the score of the image: base + Σ values, but for the completeness error
    completeness_error: Float[Tensor, " batch"]  # |base + Σ values − score| / Σ |values|

    @property
    def by_map(self) -> Float[Tensor, "batch maps"]:
        """What each map says in all, summed over places."""
        return reduce(self.values, "b h w k -> b k", "sum")

    @property
    def by_place(self) -> Float[Tensor, "batch height width"]:
        """What each place says, summed over maps."""
        return reduce(self.values, "b h w k -> b h w", "sum")


def class_evidence(
    classifier: TDSMClassifier, maps: Maps, classes: Int[Tensor, " batch"] | None = None, *, points: int = 32
) -> Evidence:
    """Share a class score out among the tokens' maps and their places.

    The score is the class's logit above the mean of all classes' logits. With maps of one channel a token, as
    `spatial_map` gives them, `by_map` is the evidence by token.

    >>> classifier = TDSMClassifier(num_tokens=8, num_classes=3, pool="avg")
    >>> evidence = class_evidence(classifier, torch.randn(2, 16, 16, 8))
    >>> evidence.values.shape, evidence.by_map.shape
    (torch.Size([2, 16, 16, 8]), torch.Size([2, 8]))
    >>> bool(torch.allclose(evidence.base + evidence.by_map.sum(1), evidence.score, atol=1e-5))
    True

    Args:
        classifier: A head and the statistics it standardises by.
        maps: Of images, channels last, as the classifier reads them.
        classes: The class to explain, one an image; what the classifier predicts if not given.
        points: Quadrature points of the path, 1 to 256. Linear heads are exact with one.

    Raises:
        UsageError: If maps do not fit the classifier, `points` is out of range, or `classes` are not one an image.
    """
    if not isinstance(points, int) or not 1 <= points <= MOST_POINTS:
        raise UsageError(f"class_evidence: points is {points!r}, expected 1 to {MOST_POINTS} quadrature points.")
    maps = maps.detach()
    with torch.no_grad():
        logits = classifier(maps)
        start = classifier.mean.expand_as(maps)
        base = classifier(start)
    chosen = _checked(logits.argmax(dim=1) if classes is None else classes, logits)
    gradient = torch.zeros_like(maps)
    for at, weight in gauss_legendre(points):
        gradient += weight * _gradient(classifier, start + at * (maps - start), chosen)
    values = (maps - start) * gradient
    score, ground = _above_mean(logits, chosen), _above_mean(base, chosen)
    missing = (ground + reduce(values, "b h w k -> b", "sum") - score).abs()
    size = reduce(values.abs(), "b h w k -> b", "sum").clamp(min=torch.finfo(values.dtype).tiny)
    return Evidence(chosen, values, ground, score, missing / size)


def _checked(classes: Tensor, logits: Logits) -> Int[Tensor, " batch"]:
    batch, count = logits.shape
    if classes.shape != (batch,) or classes.is_floating_point() or not bool(((classes >= 0) & (classes < count)).all()):
        raise UsageError(
            f"class_evidence: classes are {classes.tolist()}, expected {batch} whole numbers from 0 to {count - 1}, "
            "one an image."
        )
    return classes.to(logits.device)


def _above_mean(logits: Logits, classes: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    return logits.gather(1, classes[:, None])[:, 0] - logits.mean(dim=1)


def _gradient(classifier: TDSMClassifier, maps: Maps, classes: Int[Tensor, " batch"]) -> Maps:
    with torch.inference_mode(False), torch.enable_grad():
        maps, classes = maps.clone().requires_grad_(), classes.clone()
        (gradient,) = torch.autograd.grad(_above_mean(classifier(maps), classes).sum(), maps)
    return gradient
