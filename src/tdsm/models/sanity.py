"""What a field must beat before its reconstruction says anything: two guesses that hold no field at all."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base.statistics import psnr

Batches = Iterable[Float[Tensor, "_ channels height width"]]  # of any sizes
MARGIN = 1.0  # dB; a field no further above the better guess has learned almost nothing


def mean_image(batches: Batches) -> Float[Tensor, "channels height width"]:
    """Average images that are read in batches.

    >>> mean_image([torch.zeros(1, 1, 2, 2), torch.ones(3, 1, 2, 2)]).flatten().tolist()
    [0.75, 0.75, 0.75, 0.75]
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images in batches:
        total, count = total + images.double().sum(dim=0), count + len(images)
    return (total / count).float()


def field_sanity(field_psnr: float, batches: Batches, mean: Float[Tensor, "channels height width"]) -> dict:
    """Set a field's PSNR beside those of guesses that know next to nothing.

        psnr_mean_image     every image is guessed to be the mean training image
        psnr_mean_colour    every image is guessed to be its own mean colour everywhere

    both in dB and averaged over images as the field's is.

    >>> images = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    >>> found = field_sanity(6.5, [images], images.mean(dim=0))
    >>> round(found["psnr_mean_image"], 2), found["psnr_mean_colour"]
    (6.02, 100.0)
    >>> found["sanity"]
    'The field has learned almost nothing: 6.5 dB, where the mean training image reaches 6.0 dB and each image as its \
own mean colour 100.0 dB.'

    Args:
        field_psnr: Of the field, in dB, on the same images.
        batches: Those images, values in [-1, 1].
        mean: The mean training image.

    Returns:
        These two, and under `sanity` a sentence that says plainly when the field is hardly better, or worse.
    """
    as_mean, as_colour = [], []
    for images in batches:
        as_mean.append(psnr(images, mean.expand_as(images)))
        as_colour.append(psnr(images, images.mean(dim=(2, 3), keepdim=True).expand_as(images)))
    guesses = {"psnr_mean_image": _mean(as_mean), "psnr_mean_colour": _mean(as_colour)}
    return guesses | {"sanity": _words(field_psnr, *guesses.values())}


def _words(field: float, image: float, colour: float) -> str:
    outcome = "has learned almost nothing:" if field <= max(image, colour) + MARGIN else "reconstructs at"
    return (
        f"The field {outcome} {field:.1f} dB, where the mean training image reaches {image:.1f} dB and each image as "
        f"its own mean colour {colour:.1f} dB."
    )


def _mean(parts: list[Float[Tensor, "_"]]) -> float:
    return torch.cat(parts).double().mean().item()
