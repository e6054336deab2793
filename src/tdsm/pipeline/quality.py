"""How well a run's field reconstructs its test images, measured once."""

from pathlib import Path
from typing import Any

from tdsm.base import io
from tdsm.pipeline import link
from tdsm.pipeline.run import Run
from tdsm.training.reconstruction import reconstruction_quality

FOLDER, RESULT = "quality", "quality.json"


def reconstruction_of(run: Run) -> dict[str, Any]:
    """Return mean and deviation of the PSNR of a run's field on test images, and what no field is needed for."""

    def fill(folder: Path) -> None:
        io.write_json(folder / RESULT, reconstruction_quality(run.field, run.data.test))

    link.keep(run.path / FOLDER, quality_origin(run), fill, holds=[RESULT], say=run.say)
    return io.read_object(run.path / FOLDER / RESULT)


def quality_origin(run: Run) -> dict[str, Any]:
    """Name all that decides it."""
    return {"field": run.field_hash, "test": run.data.test.fingerprint()}
