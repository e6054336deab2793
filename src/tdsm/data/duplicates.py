"""Find pictures that are in two sets, by the hashes of their pixels."""

import torch
from jaxtyping import Bool
from torch import Tensor

from tdsm.data.imageset import ImageSet

PAIRS = (("train", "test"), ("validation", "test"), ("train", "validation"))


def shared(images: ImageSet, others: ImageSet) -> Bool[Tensor, "samples"]:
    """Tell which images have the same pixels as one of the others.

    >>> pixels, labels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    >>> whole = ImageSet(pixels, labels, torch.arange(4), ("cat",))
    >>> shared(whole, whole.subset([2]))
    tensor([False, False,  True, False])
    """
    return torch.isin(images.hashes, others.hashes)


def treat_duplicates(sets: dict[str, ImageSet], *, drop: bool) -> tuple[dict[str, ImageSet], list[str]]:
    """Count what two sets share, and leave it out of the first if asked to; say it in notes."""
    sets, notes = dict(sets), []
    for name, other in PAIRS:
        is_shared = shared(sets[name], sets[other])
        if not (count := int(is_shared.sum())):
            continue
        if drop:
            sets[name] = sets[name].subset((~is_shared).nonzero().flatten())
        done = "were left out of it" if drop else "stay in both; drop_duplicates leaves them out"
        notes.append(f"{count} images of {name} are in {other} too, pixel by pixel, and {done}.")
    return sets, notes
