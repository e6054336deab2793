"""Are the mirrored maps of an image the maps of the mirrored image? What flips in map space rest on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tdsm.data import ImageSet
from tdsm.features.config import MapConfig
from tdsm.features.extract import compute_features
from tdsm.models.field import NeuralField


def mirror_errors(
    field: NeuralField, images: ImageSet, names: Sequence[str], config: MapConfig
) -> dict[str, dict[str, float]]:
    """Compare each feature of mirrored images with its mirror image, over all images together.

        error   ‖M(Fx) − F M(x)‖ / ‖M(Fx)‖
        beside  ‖M(Fx) − F M(x)‖ / ‖M(Fx) − F M(x')‖,    x' the next image

    F mirrors left to right. Pixels have 0 and 0; where `beside` is 1, mirrored maps are no nearer to those of the
    mirrored image than another image's.

    Args:
        field: The field.
        images: At least two.
        names: Features with places.
        config: Size and reduction of the maps.

    Returns:
        Under each name both numbers, 0 or more.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in names}
    for rows in torch.arange(len(images)).split(config.batch_size):
        pixels = images.floats(rows)
        seen, mirrored = (compute_features(field, given, names, config) for given in (pixels, pixels.flip(-1)))
        for name in names:
            sums[name] += _squares(mirrored[name].double(), seen[name].double().flip(2))
    return {
        name: {"error": _root(own / norm), "beside": _root(own / other)} for name, (own, other, norm) in sums.items()
    }


def _squares(mirrored: Tensor, flipped: Tensor) -> Tensor:
    """Return the squared distances to an image's own maps and to the next one's, and the squared norm."""
    return torch.stack([(mirrored - other).square().sum() for other in (flipped, flipped.roll(1, 0), 0 * flipped)])


def _root(share: Tensor) -> float:
    return share.sqrt().nan_to_num(0.0).item()
