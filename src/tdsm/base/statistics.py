"""How good a reconstruction or a classification is, with its uncertainty."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def psnr(
    images: Float[Tensor, "batch height width channels"], reconstruction: Float[Tensor, "batch height width channels"]
) -> Float[Tensor, " batch"]:
    """Measure the peak signal-to-noise ratio of each image, in dB on the [0, 1] scale.

        PSNR = 10 · log10(1 / MSE),    MSE over all pixels and channels of one image

    Average the result over images, not the errors before the logarithm. Values from outside [-1, 1] are
    clipped first, as they would be on a screen. An image reproduced to within 1e-5 counts as 100 dB.

    Args:
        images: Values in [-1, 1].
        reconstruction: Values nominally in [-1, 1].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    shown, target = [(values.clamp(-1, 1) + 1) / 2 for values in (reconstruction, images)]
    ratio = peak_signal_noise_ratio(shown, target, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return ratio.clamp(max=100.0)


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion by its Wilson score interval (Wilson 1927).

    >>> low, high = wilson_interval(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_interval(is_right: Bool[Tensor, "seeds samples"]) -> tuple[float, float]:
    """Bound the accuracy to expect of other seeds on other samples, with 95 % confidence.

    For S seeds on the same n samples, p_i being the share of the seeds that are right on sample i, a_s the accuracy
    of seed s and p the mean of either:

        V = s²(p_i) / n + s²(a_s) / S                                        variance of p
        ν = V² / [(s²(p_i) / n)² / (n − 1) + (s²(a_s) / S)² / (S − 1)]       its degrees of freedom (Welch 1947)

    The interval is Wilson's of the share p of m = p(1 − p) / V samples, with z the 97.5 % quantile of Student's t of
    ν. It errs to the wide side: what is particular to one seed on one sample counts in both terms of V. For one seed,
    one sample, and where V is 0, it is Wilson's of n samples.

    >>> import torch
    >>> low, high = accuracy_interval(torch.arange(100).repeat(2, 1) < torch.tensor([[50], [60]]))
    >>> round(low, 3), round(high, 3)
    (0.357, 0.729)

    Args:
        is_right: Whether each seed's class of each sample is the true one.
    """
    from scipy.stats import t

    seeds, count = is_right.shape
    right = is_right.double()
    mean, variance = right.mean().item(), 0.0
    if min(seeds, count) > 1:
        of_samples, of_seeds = right.mean(dim=0).var().item() / count, right.mean(dim=1).var().item() / seeds
        variance = of_samples + of_seeds
    if variance == 0:
        return wilson_interval(round(mean * count), count)
    freedom = variance**2 / (of_samples**2 / (count - 1) + of_seeds**2 / (seeds - 1))
    return _wilson(mean, mean * (1 - mean) / variance, float(t.ppf(0.975, freedom)))


def confusion_matrix(
    labels: Int[Tensor, " samples"], predictions: Int[Tensor, " samples"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Count samples by true class (rows) and predicted class (columns)."""
    flat = labels * num_classes + predictions
    return flat.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def _wilson(share: float, total: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `total` samples, which need not be a whole number."""
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
