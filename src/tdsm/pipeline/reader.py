"""Read a run as a library user does: its field, data, features, table and predictions."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from tdsm.base.errors import UsageError
from tdsm.base.registry import nearest
from tdsm.data import Data
from tdsm.data.imageset import SPLITS
from tdsm.features.kinds import FEATURES
from tdsm.models.field import NeuralField
from tdsm.models.load import load_field
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.field import require_trained
from tdsm.pipeline.folder import owned, read_config
from tdsm.pipeline.rows import read_predictions, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.stages import take_up


def load_run(path: str | Path, *, source: str | None = None) -> "FinishedRun":
    """Open a run whose field is trained.

        run = tdsm.load_run("runs/cifar")
        tokens, labels = run.features("tokens", "test"), run.data.test.labels
        best = max(run.table, key=lambda row: row["validation_accuracy"])

    Args:
        path: The run's folder.
        source: Where its data are now, if they were moved.

    Raises:
        CheckpointError: If there is no run, or its field is not trained, or was changed.
    """
    return FinishedRun(Path(path).expanduser(), source)


class FinishedRun:
    """A run to read from; data and table are taken up when they are first asked for, and checked then."""

    def __init__(self, path: Path, source: str | None):
        self.path, self._source = path, source
        self.config: RunConfig = read_config(path)
        require_trained(path, self.config)

    @cached_property
    def field(self) -> NeuralField:
        """The trained field, on the CPU."""
        return load_field(self.path)

    @property
    def data(self) -> Data:
        """The images of each split, as they were split for the run."""
        return self._run.data

    def features(self, name: str, split: str) -> Shaped[np.ndarray, "samples ..."]:
        """Return a feature of a split as it is stored; what is not there is extracted first.

        Args:
            name: A feature, such as tokens or tdsm.
            split: train, validation or test.

        Raises:
            UsageError: If there is no such feature or split.
        """
        for what, given, known in (("feature", name, FEATURES), ("split", split, SPLITS)):
            if given not in known:
                raise UsageError(
                    f"unknown {what} {given!r}{nearest(given, known)}; expected one of {', '.join(known)}."
                )
        with owned(self.path):
            rows = self._run.features(split).rows(name)
        return np.concatenate([shard.numpy() for shard in rows.shards])

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows of the run's table: name, scores on test, validation accuracy, settings.

        Raises:
            CheckpointError: If the run was not evaluated.
        """
        return scored_rows(self._run)

    def predictions(self, row: str) -> Int[np.ndarray, "seeds samples"]:
        """Return the class each seed of a row gave the test samples, in their order.

        Raises:
            UsageError: If the row is not in the table.
        """
        names = [entry["name"] for entry in self.table]
        if row not in names:
            raise UsageError(f"{self.path}: no row {row!r}{nearest(row, names)}; expected one of {', '.join(names)}.")
        return read_predictions(self._run, row).numpy()

    @cached_property
    def _run(self) -> Run:
        return take_up(self.path, lambda words: None, source=self._source)
