"""How good a reconstruction or a classification is, with its uncertainty.

Every interval of the project is made here, at 95 % confidence, and says by which method.
"""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

WILSON, WILSON_SEEDS = "Wilson", "Wilson over images and seeds"
PAIRED, PAIRED_SEEDS = "paired over images", "paired over images and seeds"


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval, and the name of the method that gave them."""

    value: float
    low: float
    high: float
    method: str

    @property
    def has_zero(self) -> bool:
        """Whether 0 lies between the ends: of a difference, that none is shown."""
        return self.low <= 0 <= self.high


def psnr(
    images: Float[Tensor, "batch height width channels"], reconstruction: Float[Tensor, "batch height width channels"]
) -> Float[Tensor, " batch"]:
    """Measure the peak signal-to-noise ratio of each image, in dB on the [0, 1] scale.

        PSNR = 10 · log10(1 / MSE),    MSE over all pixels and channels of one image

    Average the result over images, not the errors before the logarithm. Values from outside [-1, 1] are
    clipped first, as they would be on a screen. An image reproduced to within 1e-5 counts as 100 dB.

    >>> import torch
    >>> psnr(torch.ones(1, 2, 2, 3), torch.full((1, 2, 2, 3), 0.8)).round(decimals=3)
    tensor([20.])

    Args:
        images: Values in [-1, 1].
        reconstruction: Values nominally in [-1, 1].
    """
    shown, target = [(values.clamp(-1, 1) + 1) / 2 for values in (reconstruction, images)]
    error = (shown - target).square().sum(dim=(1, 2, 3)) / shown.shape[1:].numel()
    return (-10 / math.log(10) * error.log()).clamp(max=100.0)


def wilson_interval(correct: int, total: int) -> Interval:
    """Bound a proportion by its Wilson score interval (Wilson 1927).

    >>> found = wilson_interval(50, 100)
    >>> found.value, round(found.low, 3), round(found.high, 3), found.method
    (0.5, 0.404, 0.596, 'Wilson')
    """
    return _wilson(correct / total, total, math.inf, WILSON)


def accuracy_interval(is_right: Bool[Tensor, "seeds samples"]) -> Interval:
    """Bound the accuracy to expect of other seeds on other samples.

    For S seeds on the same n samples, p_i being the share of the seeds that are right on sample i, a_s the accuracy
    of seed s and p the mean of either:

        V = s²(p_i) / n + s²(a_s) / S                                        variance of p
        ν = V² / [(s²(p_i) / n)² / (n − 1) + (s²(a_s) / S)² / (S − 1)]       its degrees of freedom (Welch 1947)

    The interval is Wilson's of the share p of m = p(1 − p) / V samples, with z the 97.5 % quantile of Student's t of
    ν. It errs to the wide side: what is particular to one seed on one sample counts in both terms of V. For one seed,
    one sample, and where V is 0, it is Wilson's of n samples.

    >>> import torch
    >>> found = accuracy_interval(torch.arange(100).repeat(2, 1) < torch.tensor([[50], [60]]))
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3), found.method
    (0.55, 0.357, 0.729, 'Wilson over images and seeds')

    Args:
        is_right: Whether each seed's class of each sample is the true one.
    """
    seeds, count = is_right.shape
    right = is_right.double()
    mean = right.mean().item()
    name = WILSON if seeds == 1 else WILSON_SEEDS
    if min(seeds, count) == 1:
        return _wilson(mean, count, math.inf, name)
    variance, freedom = _add([(right.mean(dim=0).var().item() / count, count - 1), _of_seeds(right)])
    return _wilson(mean, mean * (1 - mean) / variance if variance else count, freedom, name)


def paired_difference(one: Bool[Tensor, "seeds samples"], other: Bool[Tensor, "other_seeds samples"]) -> Interval:
    """Bound how much more accurate one classifier is than another on the same samples.

    d_i is the share of the seeds of `one` that are right on sample i less that of the seeds of `other`. Two samples
    are added that speak for either side by half and do not differ by one (Agresti & Min 2005), so that the interval
    keeps its width where the two hardly ever differ; a_s are the accuracies of the seeds of either:

        d' = Σ d_i / (n + 2),    V = [(Σ d_i² + 1) / (n + 2) − d'²] / (n + 2) + Σ s²(a_s) / S,    d' ± t_ν · √V

    with ν by Welch's formula from n + 1 and S − 1 degrees of freedom. A classifier of one seed, such as k-NN, adds no
    variance of seeds. The value is the plain mean of d_i.

    >>> import torch
    >>> right = torch.arange(200)[None]
    >>> found = paired_difference(right < 122, (right >= 41) & (right < 138))
    >>> [round(100 * number, 1) for number in (found.value, found.low, found.high)]
    [12.5, 5.1, 19.6]

    Args:
        one: Whether each seed is right on each sample.
        other: The same of the reference, same samples in the same order.
    """
    gain = one.double().mean(dim=0) - other.double().mean(dim=0)
    padded = len(gain) + 2
    middle = gain.sum().item() / padded
    of_samples = ((gain.square().sum().item() + 1) / padded - middle**2) / padded
    seeded = [_of_seeds(right.double()) for right in (one, other) if len(right) > 1]
    variance, freedom = _add([(of_samples, padded - 1), *seeded])
    half = _student(freedom) * variance**0.5
    name = PAIRED_SEEDS if seeded else PAIRED
    return Interval(gain.mean().item(), max(-1.0, middle - half), min(1.0, middle + half), name)


def paired_mean(one: Float[Tensor, "seeds samples"], other: Float[Tensor, "seeds samples"]) -> Interval:
    """Bound the mean difference of two measurements of the same samples by the same seeds.

    With d_i the mean over seeds on sample i and d_s that over samples of seed s: d ± t_ν · √V,
    V = s²(d_i) / n + s²(d_s) / S, ν by Welch's formula. One seed adds no variance.

    >>> import torch
    >>> found = paired_mean(torch.tensor([[0.3, 0.5, 0.4, 0.6]]), torch.tensor([[0.2, 0.2, 0.3, 0.3]]))
    >>> [round(number, 3) for number in (found.value, found.low, found.high)], found.method
    ([0.2, 0.016, 0.384], 'paired over samples')

    Args:
        one: Of at least two samples.
        other: The same of the reference, same seeds and samples in the same order.
    """
    apart = one.double() - other.double()
    seeded = [_of_seeds(apart)] if len(apart) > 1 else []
    variance, freedom = _add([(apart.mean(dim=0).var().item() / apart.shape[1], apart.shape[1] - 1), *seeded])
    value, half = apart.mean().item(), _student(freedom) * variance**0.5
    return Interval(value, value - half, value + half, "paired over samples" + " and seeds" * bool(seeded))


def mcnemar(one: Bool[Tensor, " samples"], other: Bool[Tensor, " samples"]) -> float:
    """Return the exact two-sided p that two classifiers are right equally often (McNemar 1947).

    Of the b + c samples on which one alone is right, each is as likely to be either's: a binomial test of b in b + c
    against one half. 1 where they never differ.

    >>> import torch
    >>> mcnemar(torch.tensor([True] * 5 + [False]), torch.tensor([False] * 5 + [True]))
    0.21875
    """
    from scipy.stats import binomtest

    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def confusion_matrix(
    labels: Int[Tensor, " samples"], predictions: Int[Tensor, " samples"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Count samples by true class (rows) and predicted class (columns)."""
    flat = labels * num_classes + predictions
    return flat.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def _of_seeds(right: Float[Tensor, "seeds samples"]) -> tuple[float, int]:
    """Return the variance of a mean over seeds, and its degrees of freedom."""
    return right.mean(dim=1).var().item() / len(right), len(right) - 1


def _add(parts: list[tuple[float, int]]) -> tuple[float, float]:
    """Add variances of means; return the sum and its degrees of freedom by Welch's formula."""
    variance = sum(part for part, _ in parts)
    scatter = sum(part**2 / freedom for part, freedom in parts)
    return variance, variance**2 / scatter if scatter else math.inf


def _student(freedom: float | int) -> float:
    """Return the 97.5 % quantile of Student's t; of infinite freedom it is the normal distribution's."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _wilson(share: float, total: float | int, freedom: float | int, method: str) -> Interval:
    """Return Wilson's interval of a share of `total` samples, which need not be a whole number."""
    z = _student(freedom)
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), method)
