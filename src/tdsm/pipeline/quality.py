"""How well a run's field reconstructs its test images, measured once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.progress import phase
from tdsm.data import ImageSet
from tdsm.models.sanity import field_sanity, mean_image
from tdsm.pipeline import link
from tdsm.pipeline.run import Run
from tdsm.training.reconstruction import reconstruction_quality

FOLDER, RESULT = "quality", "quality.json"


def reconstruction_of(run: Run) -> dict[str, Any]:
    """Return mean and deviation of the PSNR of a run's field on test images, and what a field must beat."""

    def fill(folder: Path) -> None:
        with phase("measuring the reconstruction"):
            quality, mean = reconstruction_quality(run.field, run.data.test), mean_image(_batches(run.data.train))
            sanity = field_sanity(quality["psnr"], _batches(run.data.test), mean)
        io.write_json(folder / RESULT, quality | sanity)

    link.keep(run.path / FOLDER, quality_origin(run), fill, holds=[RESULT], say=run.say)
    return io.read_object(run.path / FOLDER / RESULT)


def quality_origin(run: Run) -> dict[str, Any]:
    """Name all that decides it."""
    return {"field": run.field_hash, "train": run.data.train.fingerprint(), "test": run.data.test.fingerprint()}


def _batches(images: ImageSet) -> Iterator[Float[Tensor, "_ channels height width"]]:
    return (images.floats(rows) for rows in torch.arange(len(images)).split(256))
