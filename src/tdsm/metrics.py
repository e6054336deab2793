"""How good a reconstruction or a classification is, with its uncertainty."""

from jaxtyping import Float, Int
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


def confusion_matrix(
    labels: Int[Tensor, " samples"], predictions: Int[Tensor, " samples"], num_classes: int
) -> Int[Tensor, "classes classes"]:
    """Count samples by true class (rows) and predicted class (columns)."""
    flat = labels * num_classes + predictions
    return flat.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)
