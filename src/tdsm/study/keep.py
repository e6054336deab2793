"""What a study fitted is kept as parts of the run, each of which says what it was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdsm.base import io
from tdsm.base.randomness import generator
from tdsm.data import Data, ImageSet
from tdsm.pipeline import link
from tdsm.pipeline.run import Run

ANSWER, PREDICTED = "answer.json", "predicted.safetensors"


def keep_answer(
    run: Run, path: Path, made_from: dict[str, Any], test: ImageSet, fit: Callable[[], tuple[dict, Tensor]]
) -> dict[str, Any]:
    """Return the row that `fit` gives with its predictions, or gave in an earlier call, and where it `is_right`.

    Args:
        run: The run that is asked.
        path: Where the answer stands or goes.
        made_from: All that decides it but the test images.
        test: The images it is scored on.
        fit: Fits, reads test once, and returns the row and the predicted classes.
    """

    def fill(folder: Path) -> None:
        row, predicted = fit()
        io.write_tensors(folder / PREDICTED, {"predicted": predicted})
        io.write_json(folder / ANSWER, row)

    link.keep(path, made_from | {"test": test.fingerprint()}, fill, holds=[ANSWER, PREDICTED], say=run.say)
    is_right = io.read_tensors(path / PREDICTED)["predicted"] == test.labels
    return io.read_object(path / ANSWER) | {"is_right": is_right.tolist()}


def subsets(run: Run, max_train: int | None, max_test: int | None) -> Data:
    """Return a run's data with at most so many random training and test images, always the same ones."""

    def some(images: ImageSet, limit: int | None, split: str) -> ImageSet:
        order = torch.randperm(len(images), generator=generator(run.config.seed, "study", split))
        return images.subset(order[: limit or len(images)].sort().values)

    data = run.data
    train, test = some(data.train, max_train, "train"), some(data.test, max_test, "test")
    return Data(train, data.validation, test, data.name, data.notes)
